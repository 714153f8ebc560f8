"""The plan of the gateway as gateway.toml, which `kloros_llm.gateway.config` reads.

Names of keys and certificates are relative: systemd's credentials have them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from .gateway_plan import listener_name
from .gateway_wishes import LISTENER_KEYS
from .wishes import with_defaults

_OF_HUB: Final = "hf_token"
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+\Z")


def credentials(gateway: Mapping[str, Any]) -> dict[str, str | None]:
    """What the gateway's unit passes to it, by name: the file that holds it.

    A relative path begins at the folder `credentials/gateway`; None is for secrets of the
    inventory's own: a listener's keys, the token of the Hub.
    """
    found: dict[str, str | None] = {}
    for listener in gateway["listeners"]:
        key = _key_of_listener(listener)
        if listener["api_key"]:
            found[key] = None
        if listener["tls"]:
            found[f"{key}.certificate.pem"] = listener["tls"]["certificate"]
            found[f"{key}.key.pem"] = listener["tls"]["key"]
    if gateway["hf_token"]:
        found[_OF_HUB] = None
    for name, instance in gateway["instances"].items():
        if instance["api_key"]:
            found[f"instance-{name}"] = f"../{name}.key"
    return found


def keys_of_listeners(wishes: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The keys of the clients of each listener, by its name; `wishes` are the inventory's own."""
    found = {}
    for raw in wishes:
        wish = with_defaults(raw, LISTENER_KEYS)
        keys = wish["api_key"] or []
        found[listener_name(wish["address"], wish["port"])] = (
            [keys] if isinstance(keys, str) else list(keys)
        )
    return found


def _key_of_listener(listener: Mapping[str, Any]) -> str:
    return f"listener-{listener['name']}"


def gateway_toml(gateway: Mapping[str, Any], header: str = "") -> str:
    """The file's text; `header` is a comment at its top."""
    comment = [f"# {line}" for line in header.splitlines()]
    return "\n".join([*comment, *_lines(gateway)]) + "\n"


def _lines(gateway: Mapping[str, Any]) -> Iterator[str]:
    yield from _table(
        None,
        {
            "models_dir": gateway["models_dir"],
            "state_dir": gateway["state_dir"],
            "hf_endpoint": gateway["hf_endpoint"] or None,
            "hf_token_file": _OF_HUB if gateway["hf_token"] else None,
            "ollama_version": gateway["ollama_version"] or None,
            "think_inline": gateway["think_inline"],
            "log_prompts": gateway["log_prompts"],
        },
    )
    for listener in gateway["listeners"]:
        key = _key_of_listener(listener)
        yield from _table(
            "[[listeners]]",
            {
                "address": listener["address"],
                "port": listener["port"],
                "instances": listener["instances"],
                "socket_name": listener["socket_name"],
                "origins": listener["origins"] or None,
                "api_key_file": key if listener["api_key"] else None,
                "tls_certificate": f"{key}.certificate.pem" if listener["tls"] else None,
                "tls_key": f"{key}.key.pem" if listener["tls"] else None,
            },
        )
    for name, instance in gateway["instances"].items():
        of_models = ("model_context_tokens", "memory_bytes", "vram_bytes")
        values = {
            key: value for key, value in instance.items() if key not in ("api_key", *of_models)
        }
        values["api_key_file"] = f"instance-{name}" if instance["api_key"] else None
        yield from _table(f"[instances.{_key(name)}]", values)
        for key in of_models:
            if instance[key]:
                yield from _table(f"[instances.{_key(name)}.{key}]", instance[key])
    for name, model in gateway["models"].items():
        yield from _table(f"[models.{_key(name)}]", model)
    for name, persona in gateway["personas"].items():
        plain = {
            key: value for key, value in persona.items() if key not in ("parameters", "messages")
        }
        yield from _table(f"[personas.{_key(name)}]", plain)
        if persona["parameters"]:
            yield from _table(f"[personas.{_key(name)}.parameters]", persona["parameters"])
        for message in persona["messages"]:
            yield from _table(f"[[personas.{_key(name)}.messages]]", message)
    if gateway["limits"]:
        yield from _table("[limits]", gateway["limits"])
    if gateway["metrics_port"]:
        yield from _table("[metrics]", {"port": gateway["metrics_port"]})


def _table(heading: str | None, values: Mapping[str, Any]) -> Iterator[str]:
    """A table without the keys whose value is None."""
    if heading is not None:
        yield ""
        yield heading
    for key, value in values.items():
        if value is not None:
            yield f"{_key(key)} = {_value(value)}"


def _key(text: str) -> str:
    return text if _BARE_KEY.match(text) else _value(text)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value + 0)  # without Ansible's own types
    if isinstance(value, str):
        # A string of JSON is one of TOML, but for this character.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return f"[{', '.join(_value(item) for item in value)}]"
