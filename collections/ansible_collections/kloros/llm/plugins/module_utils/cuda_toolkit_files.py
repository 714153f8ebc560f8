"""What a CUDA toolkit out of wheels or archives lacks, beside one that an installer has laid out.

`lacks` finds it and `complete` adds it; a toolkit that lacks nothing stays untouched.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

# Since which glibc <math.h> declares functions that CUDA has always had under the same names. C++
# refuses the second declaration where only one says that it does not throw. NVIDIA's own headers
# know this since CUDA 13.0 (pi functions) and 13.2 (rsqrt).
_IN_GLIBC_SINCE: Final[Mapping[str, tuple[int, int]]] = {
    **dict.fromkeys(("cospi", "cospif", "sinpi", "sinpif"), (2, 41)),
    **dict.fromkeys(("rsqrt", "rsqrtf"), (2, 42)),
}
_MATH_HEADER: Final = "include/crt/math_functions.h"
_STUB: Final = "lib/stubs/libcuda.so"
_PROGRAM_FOLDERS: Final = ("bin", "nvvm/bin")
_PROGRAM_MODE: Final = 0o755
_LIBRARY: Final = re.compile(r"(lib.+\.so)\.[0-9.]+\Z")
_CUDA_VERSION: Final = re.compile(r"^#define CUDA_VERSION (\d+)$", re.MULTILINE)
_DECLARED: Final = re.compile(r"\bCUresult\s+(cu\w+)\s*\(")
# What a call of the real driver's stub returns: CUDA_ERROR_STUB_LIBRARY of cuda.h.
_STUB_ANSWER: Final = 34
_COMPILER_TIMEOUT_S: Final = 120


class ToolkitError(Exception):
    """The folder holds no toolkit that can be completed; the message says what to do."""


@dataclass(frozen=True)
class Lack:
    """One thing that is to be put right; `path` is relative to the toolkit.

    `value` is a link's target (`link`), a whole text (`text`), and empty for a program that cannot
    be run (`mode`) and the driver's stub (`stub`); `told` is for the reader.
    """

    kind: Literal["link", "mode", "text", "stub"]
    path: str
    value: str
    told: str


def version(root: Path) -> str:
    """MAJOR.MINOR of the toolkit, from its own header. Raises ToolkitError."""
    header = root / "include/cuda.h"
    try:
        found = _CUDA_VERSION.search(header.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise _no_toolkit(root, f"{header} cannot be read: {error.strerror}") from error
    if found is None:
        raise _no_toolkit(root, f"{header} names no CUDA_VERSION")
    number = int(found.group(1))
    return f"{number // 1000}.{number % 1000 // 10}"


def host_glibc() -> tuple[int, int] | None:
    """The version of this system's C library; None where it is not glibc."""
    name = "CS_GNU_LIBC_VERSION"
    text = os.confstr(name) if name in os.confstr_names else None
    found = re.fullmatch(r"glibc (\d+)\.(\d+).*", text or "")
    return (int(found.group(1)), int(found.group(2))) if found else None


def lacks(root: Path, glibc: tuple[int, int] | None) -> list[Lack]:
    """What the toolkit lacks on a system with that glibc. Raises ToolkitError where it is none."""
    version(root)
    if not (root / "lib").is_dir():
        raise _no_toolkit(root, f"{root / 'lib'} is missing")
    return list(_lacks(root, glibc))


def complete(root: Path, found: list[Lack], compiler: str = "gcc") -> None:
    """Put right what was found. Raises ToolkitError where the C compiler fails, and OSError."""
    for lack in found:
        path = root / lack.path
        match lack.kind:
            case "link":
                path.unlink(missing_ok=True)  # one that leads nowhere
                path.symlink_to(lack.value)
            case "mode":
                path.chmod(_PROGRAM_MODE)
            case "text":
                _replace_text(path, lack.value)
            case "stub":
                _make_stub(root / "include/cuda.h", path, compiler)


def patched_math_header(text: str, glibc: tuple[int, int] | None) -> str:
    """The header with an exception specification wherever this glibc's <math.h> has one.

    A declaration that has one already, by whatever macro, stays as it is.
    """
    if glibc is None:
        return text
    names = [name for name, since in _IN_GLIBC_SINCE.items() if glibc >= since]
    if not names:
        return text
    return re.sub(
        r"^(extern __DEVICE_FUNCTIONS_DECL__ __device_builtin__\s+(?:double|float)\s+"
        rf"(?:{'|'.join(names)})\s*\((?:double|float)\s+\w+\));",
        r"\1 noexcept (true);",
        text,
        flags=re.MULTILINE,
    )


def stub_source(preprocessed: str) -> str:
    """C source of a driver library that only says that it is none.

    `preprocessed` is cuda.h after the preprocessor, which maps names such as cuMemAlloc to the
    versioned ones that programs are linked with.
    """
    names = sorted(set(_DECLARED.findall(preprocessed)))
    return "".join(f"int {name}(void) {{ return {_STUB_ANSWER}; }}\n" for name in names)


def _no_toolkit(root: Path, found: str) -> ToolkitError:
    return ToolkitError(
        f"{found}; needed: a CUDA toolkit with bin, include and lib in {root}; remove the folder "
        "and run again, and if that does not help, check where its wheels or archives come from"
    )


def _lacks(root: Path, glibc: tuple[int, int] | None) -> Iterator[Lack]:
    if not (root / "lib64").exists():
        yield _link("lib64", "lib")
    for name, target in sorted(_library_links(root / "lib").items()):
        yield _link(f"lib/{name}", target)
    for folder in _PROGRAM_FOLDERS:
        for path in sorted((root / folder).glob("*")):
            if _is_program(path) and stat.S_IMODE(path.stat().st_mode) != _PROGRAM_MODE:
                relative = path.relative_to(root).as_posix()
                yield Lack("mode", relative, "", f"{relative}: mode {_PROGRAM_MODE:04o}")
    header = root / _MATH_HEADER
    if header.is_file():
        text = _read(header)
        patched = patched_math_header(text, glibc)
        if patched != text:
            told = f"{_MATH_HEADER}: exception specifications as in this system's <math.h>"
            yield Lack("text", _MATH_HEADER, patched, told)
    if not (root / _STUB).exists():
        yield Lack("stub", _STUB, "", f"{_STUB}: a stand-in for the driver, to link with")


def _link(path: str, target: str) -> Lack:
    return Lack("link", path, target, f"{path} -> {target}")


def _library_links(folder: Path) -> dict[str, str]:
    """Missing `libX.so`, each with the shortest `libX.so.N` that is there."""
    links: dict[str, str] = {}
    for path in sorted(folder.glob("lib*.so.*"), key=lambda path: (len(path.name), path.name)):
        found = _LIBRARY.match(path.name)
        if found and not (folder / found.group(1)).exists():
            links.setdefault(found.group(1), path.name)
    return links


def _is_program(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(4)
    return start == b"\x7fELF" or start.startswith(b"#!")


def _read(path: Path) -> str:
    # NVIDIA's comments are not all UTF-8; every byte must come back as it was.
    return path.read_bytes().decode("latin-1")


def _replace_text(path: Path, text: str) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(text.encode("latin-1"))
    fresh.chmod(stat.S_IMODE(path.stat().st_mode))
    fresh.replace(path)


def _make_stub(header: Path, stub: Path, compiler: str) -> None:
    source = stub_source(_run([compiler, "-E", "-P", str(header)]))
    if not source:
        raise ToolkitError(f"{header} declares no function of the driver; needed: NVIDIA's cuda.h")
    stub.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=stub.parent) as scratch:
        text = Path(scratch, "stub.c")
        text.write_text(source, encoding="utf-8")
        made = Path(scratch, "libcuda.so")
        shared = ["-shared", "-fPIC", "-nostdlib", "-Wl,-soname,libcuda.so.1"]
        _run([compiler, *shared, "-o", str(made), str(text)])
        made.chmod(_PROGRAM_MODE)
        made.replace(stub)


def _run(argv: list[str]) -> str:
    """What a command prints. Raises ToolkitError with its own words where it fails."""
    try:
        done = subprocess.run(  # noqa: S603 - the host's own compiler, no shell
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_COMPILER_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolkitError(
            f"{argv[0]} cannot be run ({error}); needed: a C compiler; install one, e.g. gcc"
        ) from error
    if done.returncode != 0:
        last = "\n".join(done.stderr.strip().splitlines()[-10:])
        raise ToolkitError(f"'{' '.join(argv)}' ended with {done.returncode}:\n{last}")
    return done.stdout
