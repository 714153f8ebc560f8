"""The package itself: what it exports, and that modelctl does not pay for it."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import kloros_llm
from kloros_llm import errors

SRC = Path(kloros_llm.__file__).parents[1]
EXPORTED = sorted(kloros_llm._MODULES)


def run(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", f"import sys; sys.path.insert(0, {str(SRC)!r}); {code}"],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", EXPORTED)
def test_every_name_is_there(name: str) -> None:
    module = importlib.import_module(f"kloros_llm.{kloros_llm._MODULES[name]}")
    assert getattr(kloros_llm, name) is getattr(module, name)
    assert name in dir(kloros_llm)


def test_what_types_are_told_is_what_there_is() -> None:
    tree = ast.parse(Path(kloros_llm.__file__).read_text(encoding="utf-8"))
    told = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    assert told == kloros_llm._MODULES
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = kloros_llm.Nothing


def test_every_error_is_exported() -> None:
    own = {name for name, one in vars(errors).items() if isinstance(one, type)}
    assert own <= set(EXPORTED)


def test_modelctl_loads_nothing_of_the_library() -> None:
    done = run(
        "import kloros_llm.modelctl.main, kloros_llm.modelctl.host_plan; "
        "print(sorted({'requests', 'urllib3', 'aiohttp', 'kloros_llm.adapter'} & set(sys.modules)))"
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_library_loads_nothing_of_the_gateways_dependencies() -> None:
    names = ", ".join(EXPORTED)
    done = run(
        f"from kloros_llm import {names}; "
        "print(sorted({'aiohttp', 'prometheus_client', 'ansible'} & set(sys.modules)))"
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_python_without_requests_is_told_what_to_do() -> None:
    done = run("from kloros_llm import LlamaAdapter", "-S")
    assert "kloros_llm.LlamaAdapter needs the package requests: pip install" in done.stderr
    assert run("import kloros_llm.modelctl.main", "-S").returncode == 0
