"""What a running llama-server says of itself: health, slots, context."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from .host_plan import Instance

TIMEOUT_S: Final = 2.0
_ANSWER_LIMIT: Final = 4 << 20

Health = Literal["ready", "loading", "refused", "no answer"]


@dataclass(frozen=True)
class Server:
    """One server now; what it does not tell is None.

    `health`: "refused" is an answer that is neither ready nor loading (another program?).
    `context_tokens` is what one slot has. `note` says why something is missing.
    """

    health: Health
    slots: int | None = None
    slots_busy: int | None = None
    context_tokens: int | None = None
    model_path: str | None = None
    note: str | None = None


# The servers are this host's own: no proxy, and no redirect to somewhere else.
class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())


def ask_all(instances: Sequence[Instance]) -> list[Server]:
    """Ask every instance at the same time."""
    if not instances:
        return []
    with ThreadPoolExecutor(max_workers=min(16, len(instances))) as pool:
        return list(pool.map(ask, instances))


def ask(instance: Instance) -> Server:
    """Ask one; never raises, and takes a few seconds at most."""
    status, _ = _get(f"{instance.url}/health", None)
    if status is None:
        return Server("no answer")
    if status == 503:
        return Server("loading")
    if status != 200:
        return Server("refused", note=f"/health answers {status}")
    key, note = _key(instance.key_file)
    props_status, props = _get(f"{instance.url}/props", key)
    slots_status, slots = _get(f"{instance.url}/slots", key)
    if 401 in (props_status, slots_status) and note is None:
        note = "the server refuses the key"
    settings = props.get("default_generation_settings") if isinstance(props, dict) else None
    busy = context = None
    if isinstance(slots, list) and all(isinstance(slot, dict) for slot in slots):
        busy = sum(slot.get("is_processing") is True for slot in slots)
        context = next((slot.get("n_ctx") for slot in slots), None)
    total = props.get("total_slots") if isinstance(props, dict) else None
    if total is None and isinstance(slots, list):
        total = len(slots)
    if context is None and isinstance(settings, dict):
        context = settings.get("n_ctx")
    path = props.get("model_path") if isinstance(props, dict) else None
    return Server("ready", _natural(total), busy, _natural(context), path and str(path), note)


def _key(file: Path | None) -> tuple[str | None, str | None]:
    if file is None:
        return None, None
    try:
        return file.read_text(encoding="utf-8").splitlines()[0].strip(), None
    except (OSError, IndexError, ValueError):
        return None, "it asks for a key, which root can read"


def _get(url: str, key: str | None) -> tuple[int | None, Any]:
    """Status and JSON of an answer; (None, None) where there is none."""
    request = urllib.request.Request(url)  # noqa: S310 - http:// of the plan
    if key:
        request.add_unredirected_header("Authorization", f"Bearer {key}")
    try:
        with _OPENER.open(request, timeout=TIMEOUT_S) as answer:
            return answer.status, json.loads(answer.read(_ANSWER_LIMIT))
    except urllib.error.HTTPError as error:
        with error:
            return error.code, None
    except ValueError:
        return 200, None
    except (OSError, http.client.HTTPException):
        return None, None


def _natural(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
