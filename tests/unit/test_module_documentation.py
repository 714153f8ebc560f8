"""What ansible-doc says of each module's options is what the module accepts."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import basic

from tests.unit.conftest import PROJECT

COLLECTION = "ansible_collections.kloros.llm.plugins.modules"
MODULES = sorted(
    path.stem
    for path in (PROJECT / "collections" / COLLECTION.replace(".", "/")).glob("*.py")
    if path.stem != "__init__"
)


class _Asked(Exception):  # noqa: N818 - not an error
    """Ends a module once it has said what it accepts."""


@pytest.fixture(scope="session")
def documented() -> dict[str, Any]:
    """What ansible-doc prints, by module."""
    program = Path(sys.executable).with_name("ansible-doc")
    names = [f"kloros.llm.{name}" for name in MODULES]
    done = subprocess.run(
        [program, "--json", "--type", "module", *names],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return {name: found[f"kloros.llm.{name}"]["doc"] for name in MODULES}


def accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The module's argument specification."""
    module = importlib.import_module(f"{COLLECTION}.{name}")
    asked: dict[str, Any] = {}

    def ask(argument_spec: dict[str, Any], **settings: Any) -> None:
        asked.update(argument_spec)
        if settings.get("add_file_common_args"):
            asked.update(basic.FILE_COMMON_ARGUMENTS)
        assert settings["supports_check_mode"]
        raise _Asked

    monkeypatch.setattr(module, "AnsibleModule", ask)
    with pytest.raises(_Asked):
        module.main()
    return asked


def summary(options: dict[str, Any], inner: str) -> dict[str, Any]:
    """Of each option all that both sides say; `inner` is the key of the options inside one."""
    found = {}
    for name, option in options.items():
        kind = option.get("type", "str")
        default = option.get("default")
        found[name] = {
            # A mode is "raw" to the module, and anything to the documentation.
            "type": "raw" if kind == "any" else kind,
            "elements": option.get("elements"),
            "required": bool(option.get("required")),
            "default": default,
            "choices": list(option.get("choices") or []),
            "aliases": list(option.get("aliases") or []),
            "options": summary(option.get(inner) or {}, inner),
        }
    return found


@pytest.mark.parametrize("name", MODULES)
def test_the_documented_options_are_the_accepted_ones(
    name: str, documented: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = summary(accepted(name, monkeypatch), "options")
    assert summary(documented[name].get("options", {}), "suboptions") == spec


@pytest.mark.parametrize("name", MODULES)
def test_no_secret_is_logged(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is called a token, key or password is marked as one."""
    for option, spec in accepted(name, monkeypatch).items():
        if any(word in option.split("_") for word in ("token", "key", "password", "secret")):
            assert spec.get("no_log") is True, option
