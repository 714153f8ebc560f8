"""Which CUDA toolkits serve a host's GPUs, and what to compile for.

Machine code runs only on the GPUs that it was made for, and PTX, which a driver compiles when it
loads, only on a driver as new as the toolkit. So machine code (`-real`) is made for each GPU:
within one major version it runs on drivers older than the toolkit, and a driver runs what the
toolkits of older major versions made.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypedDict

from .cuda_toolkits import OLDEST_DRIVER, TOOLKITS

_VERSIONS: Final = tuple(TOOLKITS)
"""All versions, oldest first."""

_USUAL_MAJOR: Final = 12
"""CUDA 11 is a last resort: it takes g++ 11 at most, which newer distributions do not have."""

_CAPABILITY: Final = re.compile(r"[1-9][0-9]*\.[0-9]")
_CUDA_VERSION: Final = re.compile(r"[1-9][0-9]*\.(?:0|[1-9][0-9]*)")
_DRIVER_VERSION: Final = re.compile(r"[0-9]+(?:\.[0-9]+)+")


class GpuSet(TypedDict):
    """GPUs (their indices) that one toolkit covers, with the architectures to compile for."""

    gpus: list[int]
    toolkit: str
    architectures: list[str]


class BuildPlan(TypedDict):
    """What to build with.

    `toolkit` is the preferred version (MAJOR.MINOR) of `accepted`, None where that is empty;
    `architectures` are CMake's, `flags` the CMake cache entries (both empty without a toolkit),
    `reasons` sentences. `sets` are offered where the GPUs exclude each other: first the newest GPU
    with all that go with it, then the oldest of the rest with all that go with that; only GPUs
    that some toolkit within the driver's bound knows are in them.
    """

    toolkit: str | None
    accepted: list[str]
    architectures: list[str]
    flags: dict[str, str]
    reasons: list[str]
    sets: list[GpuSet]


class _Model(NamedTuple):
    """All GPUs of one compute capability: without the dot, None where the driver did not say."""

    architecture: int | None
    indices: list[int]
    label: str

    @property
    def subject(self) -> str:
        """The label with its verb."""
        return f"{self.label} {'is' if len(self.indices) == 1 else 'are'}"

    @property
    def toolkits(self) -> list[str]:
        """Every version that knows it, oldest first."""
        return [
            version for version in _VERSIONS if self.architecture in TOOLKITS[version].architectures
        ]


class _Driver(NamedTuple):
    """A driver; `cuda` is the version that it reports, `major` the newest that it runs."""

    version: str
    cuda: str | None
    major: int

    @property
    def label(self) -> str:
        return f"Driver {self.version} (CUDA {self.cuda or 'version unknown'})"


def cuda_build_plan(
    gpus: Iterable[Mapping[str, Any]], driver: Mapping[str, Any] | None
) -> BuildPlan:
    """The toolkits that serve all of `gpus` on `driver`, and how to build with the preferred one.

    `gpus` have index, name and compute_capability ("8.6", or None where the driver did not tell),
    as module `gpu_info` returns them, in any order. `driver` has version and cuda_version (None
    where it reports none, as without libcuda: then its version tells the major one); None or empty
    (a builder without one) bounds nothing.

    A version is accepted if it makes machine code for every GPU and its major version is not above
    the driver's. The driver's own comes first, then older and then newer ones of its major, nearest
    first, then older majors. Without a driver the lowest major version from 12 on comes first,
    since its machine code runs on the most drivers, and in it the newest, since all its minors run
    on the same ones.

    Raises ValueError for what does not have this form.
    """
    models = _models(gpus)
    bound = _driver(driver)
    if not models:
        return _no_toolkit(
            [
                "There is no GPU to build for. Name what to build for in "
                "llama_cpp_cuda_architectures, or build for the CPU (llama_cpp_backend: cpu)."
            ]
        )
    permitted = _permitted(bound)
    accepted = _common(models, permitted)
    if not accepted:
        return _no_toolkit(_obstacles(models, bound), _sets(models, permitted))
    architectures = _architectures(models)
    return {
        "toolkit": accepted[0],
        "accepted": accepted,
        "architectures": architectures,
        "flags": {"GGML_CUDA": "ON", "CMAKE_CUDA_ARCHITECTURES": ";".join(architectures)},
        "reasons": [*_extremes(models), *_preference(accepted[0], bound)],
        "sets": [],
    }


def _no_toolkit(reasons: list[str], sets: list[GpuSet] | None = None) -> BuildPlan:
    return {
        "toolkit": None,
        "accepted": [],
        "architectures": [],
        "flags": {},
        "reasons": reasons,
        "sets": sets or [],
    }


def _models(gpus: Iterable[Mapping[str, Any]]) -> list[_Model]:
    """The GPUs by capability, oldest first; those of an unknown one come last."""
    if not isinstance(gpus, Iterable) or isinstance(gpus, str | Mapping):
        raise ValueError(f"the GPUs must be a list, found {gpus!r}")
    names: dict[int, str] = {}
    indices: dict[int | None, list[int]] = {}
    for index, name, architecture in sorted(map(_gpu, gpus), key=lambda gpu: gpu[0]):
        if index in names:
            raise ValueError(f"two GPUs have the index {index}")
        names[index] = name
        indices.setdefault(architecture, []).append(index)
    return [
        _Model(
            architecture, indices[architecture], _label(architecture, indices[architecture], names)
        )
        for architecture in sorted(indices, key=lambda value: (value is None, value))
    ]


def _gpu(gpu: object) -> tuple[int, str, int | None]:
    if not isinstance(gpu, Mapping):
        raise ValueError(f"a GPU must be a mapping of index, name, compute_capability: {gpu!r}")
    index, name = gpu.get("index"), gpu.get("name")
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        raise ValueError(f"a GPU's index must be a number from 0 on, found {index!r}")
    if not isinstance(name, str):
        raise ValueError(f"the name of GPU {index} must be text, found {name!r}")
    if "compute_capability" not in gpu:
        raise ValueError(f"GPU {index} ({name}) has no key compute_capability")
    capability = gpu["compute_capability"]
    if capability is None:
        return int(index), name, None
    if not isinstance(capability, str) or not _CAPABILITY.fullmatch(capability):
        raise ValueError(
            f"the compute_capability of GPU {index} ({name}) must be text such as '8.6', "
            f"found {capability!r}"
        )
    return int(index), name, int(capability.replace(".", ""))


def _driver(driver: Mapping[str, Any] | None) -> _Driver | None:
    if driver is None or driver == {}:
        return None
    if not isinstance(driver, Mapping):
        raise ValueError(f"the driver must be a mapping of version, cuda_version: {driver!r}")
    version, cuda = driver.get("version"), driver.get("cuda_version")
    if not isinstance(version, str) or not _DRIVER_VERSION.fullmatch(version):
        raise ValueError(
            f"the driver's version must be text such as '550.163.01', found {version!r}"
        )
    if cuda is None:
        return _Driver(version, None, _newest_major(version))
    if not isinstance(cuda, str) or not _CUDA_VERSION.fullmatch(cuda):
        raise ValueError(f"the driver's cuda_version must be text such as '12.4', found {cuda!r}")
    return _Driver(version, cuda, _major(cuda))


def _newest_major(driver_version: str) -> int:
    """The newest major version of CUDA that a driver runs, judged by its own version."""
    served = [
        major
        for major, oldest in OLDEST_DRIVER.items()
        if _number(driver_version) >= _number(oldest)
    ]
    return max(served, default=min(OLDEST_DRIVER) - 1)


def _label(architecture: int | None, indices: Sequence[int], names: Mapping[int, str]) -> str:
    cards = _list_of(dict.fromkeys(names[index] for index in indices))
    capability = "" if architecture is None else f", {_capability(architecture)}"
    plural = "s" if len(indices) > 1 else ""
    return f"GPU{plural} {_list_of(map(str, indices))} ({cards}{capability})"


def _list_of(words: Iterable[str]) -> str:
    *some, last = words
    return f"{', '.join(some)} and {last}" if some else last


def _capability(architecture: int) -> str:
    return f"{architecture // 10}.{architecture % 10}"


def _architectures(models: Iterable[_Model]) -> list[str]:
    return [f"{model.architecture}-real" for model in models]


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _major(version: str) -> int:
    return _number(version)[0]


def _permitted(driver: _Driver | None) -> list[str]:
    """All versions that the driver runs, preferred first."""
    newest_first = _VERSIONS[::-1]
    if driver is None:
        return sorted(newest_first, key=lambda item: (_major(item) < _USUAL_MAJOR, _major(item)))
    own = _number(driver.cuda) if driver.cuda else (driver.major, sys.maxsize)
    newer = [version for version in _VERSIONS if _number(version) > own]
    older = [version for version in newest_first if version not in newer]
    return [
        *(version for version in older if _major(version) == driver.major),
        *(version for version in newer if _major(version) == driver.major),
        *(version for version in older if _major(version) != driver.major),
    ]


def _common(models: Iterable[_Model], versions: Iterable[str]) -> list[str]:
    wanted = {model.architecture for model in models}
    return [version for version in versions if wanted <= TOOLKITS[version].architectures]


def _sets(models: Sequence[_Model], permitted: Sequence[str]) -> list[GpuSet]:
    """Two sets that one toolkit each covers, where GPUs exclude each other."""
    if not _excluding_pairs(models) or not all(model.toolkits for model in models):
        return []
    served = [model for model in models if _common([model], permitted)]
    sets: list[GpuSet] = []
    covered: list[_Model] = []
    for position in (-1, 0):
        rest = [model for model in served if model not in covered]
        if not rest:
            break
        toolkit, covered = _largest_set(rest[position], served, permitted)
        sets.append(
            {
                "gpus": sorted(index for model in covered for index in model.indices),
                "toolkit": toolkit,
                "architectures": _architectures(covered),
            }
        )
    return sets


def _largest_set(
    model: _Model, models: Sequence[_Model], permitted: Sequence[str]
) -> tuple[str, list[_Model]]:
    """The toolkit that covers `model` and the most GPUs beside it, and what it covers."""

    def covered(version: str) -> list[_Model]:
        return [other for other in models if version in other.toolkits]

    best = max(  # the first of several, which is the preferred one
        _common([model], permitted),
        key=lambda version: sum(len(other.indices) for other in covered(version)),
    )
    return best, covered(best)


def _excluding_pairs(models: Sequence[_Model]) -> list[tuple[_Model, _Model]]:
    """Known models, the older first, that no toolkit covers both of."""
    known = [model for model in models if model.toolkits]
    return [
        (older, newer)
        for position, older in enumerate(known)
        for newer in known[position + 1 :]
        if not _common((older, newer), TOOLKITS)
    ]


def _extremes(models: Sequence[_Model]) -> list[str]:
    """Which toolkits know the oldest and the newest GPU."""
    if len(models) == 1:
        return [f"{models[0].subject} known to {_span(models[0])}."]
    return [
        f"{models[0].subject} the oldest, known to {_span(models[0])}.",
        f"{models[-1].subject} the newest, known to {_span(models[-1])}.",
    ]


def _span(model: _Model) -> str:
    """The toolkits that know it, e.g. `CUDA 12.8 and newer`."""
    first, last = model.toolkits[0], model.toolkits[-1]
    if first == _VERSIONS[0] and last != _VERSIONS[-1]:
        return f"CUDA {last} and older"
    if first != _VERSIONS[0] and last == _VERSIONS[-1]:
        return f"CUDA {first} and newer"
    return f"CUDA {first} to {last}"


def _preference(toolkit: str, driver: _Driver | None) -> list[str]:
    """What the driver bounds, and why this version comes first."""
    major = _major(toolkit)
    if driver is None:
        return [
            f"CUDA {toolkit} is preferred: no driver bounds it, and machine code of CUDA {major} "
            f"runs on every driver from {OLDEST_DRIVER[major]} on."
        ]
    bound = f"{driver.label} runs machine code of CUDA {driver.major} and older."
    return [bound, f"CUDA {toolkit} is preferred: {_rank(toolkit, driver.cuda)}."]


def _rank(toolkit: str, own: str | None) -> str:
    if own is None:
        return "the newest of them that serves"
    if toolkit == own:
        return "it is the driver's own version"
    lacks = "does not know every GPU" if own in TOOLKITS else "is no toolkit in the table"
    nearest = (
        "this is the nearest older one that serves"
        if _number(toolkit) < _number(own)
        else "no older one serves, and this is the nearest newer one of the same major version"
    )
    return f"the driver's own version, {own}, {lacks}; {nearest}"


def _obstacles(models: Sequence[_Model], driver: _Driver | None) -> list[str]:
    """Why no toolkit serves, and what to do about it."""
    reasons = [_not_known(model) for model in models if not model.toolkits]
    reasons += [
        f"{older.label} and {newer.label} exclude each other: "
        f"{_span(older)} know the former, {_span(newer)} the latter."
        for older, newer in _excluding_pairs(models)
    ]
    if driver is not None:
        reasons += _driver_too_old(models, driver)
    return reasons


def _not_known(model: _Model) -> str:
    if model.architecture is None:
        return (
            f"The compute capability of {model.label} is unknown, since the driver does not tell "
            "it. Name the architectures of all GPUs in llama_cpp_cuda_architectures (86-real "
            "stands for capability 8.6)."
        )
    known = frozenset[int]().union(*(toolkit.architectures for toolkit in TOOLKITS.values()))
    return (
        f"No CUDA from {_VERSIONS[0]} to {_VERSIONS[-1]}, where the table ends, knows "
        f"{model.label}; its capabilities go from {_capability(min(known))} to "
        f"{_capability(max(known))}. Give the path of a toolkit that does in "
        "llama_cpp_cuda_toolkit, and the architectures of all GPUs in llama_cpp_cuda_architectures "
        f"({model.architecture}-real for this capability)."
    )


def _driver_too_old(models: Sequence[_Model], driver: _Driver) -> list[str]:
    too_new = [
        model for model in models if model.toolkits and _major(model.toolkits[0]) > driver.major
    ]
    if not too_new:
        return []
    needed = max((model.toolkits[0] for model in too_new), key=_number)
    return [
        f"{driver.label} runs nothing newer than CUDA {driver.major}, which does not know "
        f"{_list_of(model.label for model in too_new)}: at least CUDA {needed} is needed, and "
        f"for that driver {OLDEST_DRIVER[_major(needed)]} or newer."
    ]
