"""Whether the machine code of a release runs on given GPUs and a given driver."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

_ARCHITECTURE: Final = re.compile(r"(\d+)(\d)([af]?)(-real|-virtual)?\Z")


def _serves(architecture: str, capability: str, *, ptx: bool) -> bool:
    """Whether code for `86-real` runs on a GPU of a capability.

    Machine code runs on the same major capability from its own minor on, that of an
    architecture-specific target (`120a`) only on its own. PTX is compiled for any newer GPU by a
    driver that knows the toolkit's (`ptx`).
    """
    found = _ARCHITECTURE.match(architecture)
    if found is None:
        return False
    made_for = int(found.group(1)), int(found.group(2))
    major, minor = capability.split(".")
    there = int(major), int(minor)
    # llama.cpp turns 12x into 12xa by itself.
    specific = bool(found.group(3)) or made_for[0] == 12
    if specific:
        return there == made_for
    if ptx and found.group(4) != "-real" and there >= made_for:
        return True
    code = found.group(4) != "-virtual"
    return code and there[0] == made_for[0] and there[1] >= made_for[1]


def uncovered(
    architectures: Iterable[str],
    gpus: Iterable[Mapping[str, Any]],
    toolkit: str,
    driver: Mapping[str, Any] | None,
) -> list[str]:
    """The GPUs that code for these architectures, made by a toolkit, does not run on, described."""
    wanted = list(architectures)
    reported = driver["cuda_version"] if driver else None
    ptx = reported is not None and _number(toolkit) <= _number(reported)
    return [
        f"GPU {gpu['index']} ({gpu['name']}, {gpu['compute_capability']})"
        for gpu in gpus
        if gpu["compute_capability"] is not None
        and not any(
            _serves(architecture, gpu["compute_capability"], ptx=ptx) for architecture in wanted
        )
    ]


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def package_problems(
    cuda: Mapping[str, Any] | None,
    gpus: Iterable[Mapping[str, Any]],
    driver: Mapping[str, Any] | None,
) -> list[str]:
    """Why a packed release does not run on a host, in sentences.

    `cuda` is what the release says of itself (`identity.cuda`: toolkit, architectures), None for
    one without CUDA; `gpus` are those that instances are to use, `driver` the host's.
    """
    used = list(gpus)
    if cuda is None or not used:
        return []
    problems = []
    if missing := uncovered(cuda["architectures"], used, cuda["toolkit"], driver):
        built = ", ".join(cuda["architectures"])
        problems.append(f"It was built for {built}, and holds no code for {', '.join(missing)}.")
    major = int(str(cuda["toolkit"]).split(".", 1)[0])
    reported = driver["cuda_version"] if driver else None
    if driver and reported and int(reported.split(".", 1)[0]) < major:
        problems.append(
            f"It was built with CUDA {cuda['toolkit']}; driver {driver['version']} runs CUDA "
            f"{reported} and older major versions."
        )
    return problems
