"""Which CUDA toolkit a host's build uses, and where it comes from.

`cuda_build_plan` says which versions serve the GPUs; here the first source is found that has one
of them and a host compiler that it accepts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, TypedDict

from .cuda_build_plan import cuda_build_plan
from .cuda_host import PACKAGE, FoundToolkit
from .cuda_toolkits import TOOLKITS
from .findings import Finding, error

SOURCES: Final = ("system", "distribution", "pypi", "redist")
"""In the order in which `auto` tries them: what is there already, then what costs least trust."""

_OLDEST_ON_PYPI: Final = "13.0"  # the older wheels hold no nvcc
_ARCHITECTURE: Final = re.compile(r"(\d{1,2})(\d)[af]?(-real|-virtual)?\Z")


class Archive(NamedTuple):
    """What a distribution's own archive has: a toolkit, where it lies, and its C++ compilers."""

    toolkit: str | None
    components: tuple[str, ...]
    compilers: tuple[int, ...]
    default_compiler: int


# Package lists of the distributions, November 2026. Debian's toolkit needs `contrib` too.
ARCHIVES: Final[Mapping[tuple[str, str], Archive]] = {
    ("debian", "12"): Archive("11.8", ("contrib", "non-free"), (11, 12), 12),
    ("debian", "13"): Archive("12.4", ("contrib", "non-free"), (12, 13, 14), 14),
    ("ubuntu", "24.04"): Archive("12.0", ("multiverse",), (9, 10, 11, 12, 13, 14), 13),
}


class HostCompiler(TypedDict):
    """The g++ that nvcc hands the host's code to."""

    version: str
    path: str


class CudaPlan(TypedDict):
    """How a release is built with CUDA.

    `version` is the toolkit's MAJOR.MINOR and `patch` its release (empty where the source decides
    it), `root` the folder above `bin/nvcc`, `packages` what of the distribution it needs,
    `components` those of the distribution's archive that have to be enabled for them.
    """

    version: str
    patch: str
    source: str
    root: str
    nvcc: str
    host_compiler: HostCompiler
    architectures: list[str]
    packages: list[str]
    components: list[str]
    reasons: list[str]


class _RefusalError(Exception):
    """Why a source does not serve."""


def named_architectures(text: str) -> list[str]:
    """CMake's list of CUDA architectures as a list.

    Raises ValueError for what is none; `native` and `all` are not accepted, since a release must
    say what it was built for.
    """
    names = [name.strip() for name in text.split(";") if name.strip()]
    for name in names:
        if not _ARCHITECTURE.match(name):
            raise ValueError(f"{name!r} is no CUDA architecture such as 86-real")
    return names


def _capability(architecture: str) -> str:
    """`86-real` as a compute capability, `8.6`."""
    found = _ARCHITECTURE.match(architecture)
    if found is None:
        raise ValueError(f"{architecture!r} is no CUDA architecture such as 86-real")
    return f"{found.group(1)}.{found.group(2)}"


def plan_cuda(
    wish: Mapping[str, Any],
    gpus: Mapping[str, Any],
    host: Mapping[str, Any],
    machine: Mapping[str, Any],
    *,
    runs_here: bool = True,
) -> tuple[CudaPlan | None, list[Finding]]:
    """The toolkit for a build, or what stands against it.

    `wish` is the plan's `llama_cpp` part, `gpus` what module `gpu_info` returned, `host` what
    `cuda_info` returned, `machine` the host's (operating system). What is built for named
    architectures and does not run on this host (`runs_here`) is not bounded by its driver.
    """
    try:
        named = named_architectures(wish["cuda_architectures"])
    except ValueError as problem:
        form = "CMake's list of architectures, e.g. 61-real;86-real"
        return None, [error("llama_cpp_cuda_architectures", str(problem), form, "correct it")]
    if not named and gpus["status"] != "ok":
        cure = f"{gpus['cure']}; on a builder without a GPU, name llama_cpp_cuda_architectures"
        return None, [error("GPUs", gpus["detail"], "the GPUs to build for", cure)]
    build = cuda_build_plan(
        [_named_gpu(name, index) for index, name in enumerate(named)] or gpus["gpus"],
        gpus["driver"] if runs_here or not named else None,
    )
    accepted, reasons = build["accepted"], list(build["reasons"])
    at_own_word = named and wish["cuda_toolkit"].startswith("/")
    if not accepted and not at_own_word:
        offers = "; or ".join(
            f"GPU {', '.join(map(str, offer['gpus']))} with CUDA {offer['toolkit']}, by "
            f"llama_cpp_cuda_architectures: {';'.join(offer['architectures'])}"
            for offer in build["sets"]
        )
        return None, [
            error(
                "CUDA toolkit",
                " ".join(reasons),
                "one toolkit that covers all GPUs to build for",
                f"build for {offers}"
                if offers
                else "name llama_cpp_cuda_architectures, and llama_cpp_cuda_toolkit with a path",
            )
        ]
    if pinned := wish["cuda_version"]:
        if pinned not in accepted and not (at_own_word and pinned not in TOOLKITS):
            shown = f"CUDA {pinned} does not serve: {' '.join(reasons)}"
            needed = f"one of: {', '.join(accepted)}"
            return None, [error("llama_cpp_cuda_version", shown, needed, "change it")]
        accepted = [pinned]
        # Instead of what would be preferred without it.
        reasons = [*reasons[:-1], f"CUDA {pinned} is what llama_cpp_cuda_version asks for."]
    chosen, refusals = _choose(
        wish, accepted, host, machine, gpus["driver"], at_own_word=bool(at_own_word)
    )
    if chosen is None:
        return None, [
            error(
                "llama_cpp_cuda_toolkit",
                "; ".join(refusals),
                f"CUDA {' or '.join(accepted[:4])}, with a g++ that it accepts",
                "open one of these ways, or name the path of a toolkit",
            )
        ]
    chosen["architectures"] = named or build["architectures"]
    chosen["reasons"] = [*reasons, *refusals, *chosen["reasons"]]
    return chosen, []


def _named_gpu(architecture: str, index: int) -> dict[str, Any]:
    return {
        "index": index,
        "name": f"{architecture} of llama_cpp_cuda_architectures",
        "compute_capability": _capability(architecture),
    }


def _choose(
    wish: Mapping[str, Any],
    accepted: Sequence[str],
    host: Mapping[str, Any],
    machine: Mapping[str, Any],
    driver: Mapping[str, Any] | None,
    *,
    at_own_word: bool,
) -> tuple[CudaPlan | None, list[str]]:
    """The first source that serves, and why those before it did not."""
    refusals: list[str] = []
    wanted = wish["cuda_toolkit"]
    sources = SOURCES if wanted == "auto" else (wanted,)
    for source in sources:
        try:
            if source == "system" or source.startswith("/"):
                own_word = at_own_word and not wish["cuda_version"]
                return _found(source, accepted, host, machine, own_word), refusals
            if source == "distribution":
                return _distribution(wish, accepted, host, machine, driver), refusals
            return _private(source, wish, accepted, host, machine), refusals
        except _RefusalError as refusal:
            refusals.append(f"{source}: {refusal}")
    return None, refusals


def _archive(machine: Mapping[str, Any]) -> Archive | None:
    system = machine["os"]
    return ARCHIVES.get((system["id"], system["version"]))


def _host_compiler(
    limit: int, host: Mapping[str, Any], machine: Mapping[str, Any]
) -> tuple[HostCompiler, list[str]]:
    """The newest g++ up to `limit`: the usual one, an installed one, or one of the archive's.

    Returns it and the packages that it needs.
    """
    archive = _archive(machine)
    packaged = archive.compilers if archive else ()
    installed = {int(major): path for major, path in host["compilers"].items()}
    # g++ itself is among the packages of every build.
    usual = archive.default_compiler if archive else max(installed, default=0)
    if 0 < usual <= limit:
        path = installed.get(usual, f"/usr/bin/g++-{usual}")
        return {"version": str(usual), "path": path}, []
    fitting = [major for major in {*installed, *packaged} if major <= limit]
    if not fitting:
        have = ", ".join(str(major) for major in sorted({*installed, *packaged})) or "none"
        raise _RefusalError(f"it takes g++ {limit} at most, the host can have: {have}")
    best = max(fitting)
    path = installed.get(best, f"/usr/bin/g++-{best}")
    packages = [] if best in installed else [f"g++-{best}"]
    return {"version": str(best), "path": path}, packages


def _plan(
    version: str, source: str, root: str, compiler: HostCompiler, reason: str, **more: Any
) -> CudaPlan:
    plan: CudaPlan = {
        "version": version,
        "patch": "",
        "source": source,
        "root": root,
        "nvcc": f"{root}/bin/nvcc",
        "host_compiler": compiler,
        "architectures": [],
        "packages": [],
        "components": [],
        "reasons": [reason],
    }
    return {**plan, **more}  # type: ignore[typeddict-item]


def _found(
    source: str,
    accepted: Sequence[str],
    host: Mapping[str, Any],
    machine: Mapping[str, Any],
    at_own_word: bool,
) -> CudaPlan:
    """A toolkit that is on the host: any (`system`), or the one at a path."""
    toolkits: list[FoundToolkit] = host["toolkits"]
    if source != "system":
        toolkits = [toolkit for toolkit in toolkits if toolkit["root"] == source]
    if not toolkits:
        place = "on the host" if source == "system" else "in that folder's bin"
        raise _RefusalError(f"no toolkit with an nvcc that runs is {place}")
    why_not: list[str] = []
    order = {version: rank for rank, version in enumerate(accepted)}
    for toolkit in sorted(toolkits, key=lambda item: order.get(item["version"], len(order))):
        shown = f"{toolkit['root']} has CUDA {toolkit['version']}"
        if toolkit["version"] not in order and not (
            # Of a version that the table does not know, its owner knows more.
            at_own_word and toolkit["version"] not in TOOLKITS
        ):
            why_not.append(f"{shown}, which does not serve")
            continue
        if not toolkit["fits_glibc"]:
            why_not.append(f"{shown}, whose headers do not compile with the host's C library")
            continue
        if not toolkit["cublas"]:
            why_not.append(f"{shown}, without cuBLAS to build with")
            continue
        known = TOOLKITS.get(toolkit["version"])
        limit = toolkit["gcc_limit"] or (
            known.newest_gcc if known else max(map(int, host["compilers"]), default=0)
        )
        try:
            compiler, packages = _host_compiler(int(limit), host, machine)
        except _RefusalError as refusal:
            why_not.append(f"{shown}, but {refusal}")
            continue
        root, version = toolkit["root"], toolkit["version"]
        reason = f"CUDA {version} is on the host at {root}, and is used as it is."
        return _plan(version, "system", root, compiler, reason, packages=packages)
    raise _RefusalError("; ".join(why_not))


def _distribution(
    wish: Mapping[str, Any],
    accepted: Sequence[str],
    host: Mapping[str, Any],
    machine: Mapping[str, Any],
    driver: Mapping[str, Any] | None,
) -> CudaPlan:
    archive = _archive(machine)
    version = host["packaged"] or (archive.toolkit if archive else None)
    if version is None:
        raise _RefusalError(f"{machine['os']['name']} is not known to have {PACKAGE}")
    if version not in accepted:
        raise _RefusalError(f"it has CUDA {version}, which does not serve")
    library = host["driver_library"]
    reported = (driver or {}).get("cuda_version")
    if reported and _number(reported) < _number(version):
        raise _RefusalError(
            f"its CUDA {version} comes with a newer driver library than the host's driver, which "
            f"reports CUDA {reported}"
        )
    if library is not None and library["package"] is None:
        raise _RefusalError(
            f"its CUDA {version} would install a second driver library beside {library['path']}, "
            "which is not the distribution's"
        )
    components: list[str] = []
    if not host["packaged"] and archive:
        components = list(archive.components)
        if not wish["cuda_nonfree"]:
            raise _RefusalError(
                f"its CUDA {version} is in {' and '.join(components)}, which the host has not "
                "enabled (llama_cpp_cuda_nonfree: true lets this role do so)"
            )
    compiler, packages = _host_compiler(TOOLKITS[version].newest_gcc, host, machine)
    reason = f"CUDA {version} comes from {machine['os']['name']}'s own packages ({PACKAGE})."
    return _plan(
        version,
        "distribution",
        "/usr",
        compiler,
        reason,
        packages=[PACKAGE, *packages],
        components=components,
    )


def _private(
    source: str,
    wish: Mapping[str, Any],
    accepted: Sequence[str],
    host: Mapping[str, Any],
    machine: Mapping[str, Any],
) -> CudaPlan:
    """A toolkit of its own folder: from PyPI, or from NVIDIA's redistributable archives."""
    offered = [
        version
        for version in accepted
        if source == "redist" or _number(version) >= _number(_OLDEST_ON_PYPI)
    ]
    if not offered:
        raise _RefusalError(f"it has CUDA {_OLDEST_ON_PYPI} and newer, which do not serve")
    last: _RefusalError | None = None
    for version in offered:
        toolkit = TOOLKITS[version]
        try:
            compiler, packages = _host_compiler(toolkit.newest_gcc, host, machine)
        except _RefusalError as refusal:
            last = last or _RefusalError(f"CUDA {version}: {refusal}")
            continue
        origin = "PyPI" if source == "pypi" else "NVIDIA's redistributable archives"
        root = f"{wish['cache_dir']}/cuda/{version}-{source}"
        return _plan(
            version,
            source,
            root,
            compiler,
            f"CUDA {version} comes from {origin} into {root}.",
            patch=toolkit.patch,
            packages=[*packages, *(["python3-venv"] if source == "pypi" else ["xz-utils"])],
        )
    raise last or _RefusalError("no version serves")


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
