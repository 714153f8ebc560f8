"""A toolkit out of wheels or archives becomes one to build with, and stays as it is then."""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.cuda_toolkit_files import (
    ToolkitError,
    complete,
    host_glibc,
    lacks,
    patched_math_header,
    stub_source,
    version,
)

from tests.unit.play_runner import PlayRunner

OLD_GLIBC, PI_GLIBC, RSQRT_GLIBC = (2, 36), (2, 41), (2, 42)
PI_NAMES = ["sinpi", "sinpif", "cospi", "cospif"]
RSQRT_NAMES = ["rsqrt", "rsqrtf"]

# In the form of NVIDIA's own, where macros map names to their newest version.
CUDA_H = """
#define CUDA_VERSION 12080
#define CUDAAPI
#define __CUDA_DEPRECATED __attribute__((deprecated))
typedef enum { CUDA_SUCCESS = 0, CUDA_ERROR_STUB_LIBRARY = 34 } CUresult;
typedef CUresult (CUDAAPI *CUhostFn)(void *userData);
#define cuMemAlloc cuMemAlloc_v2
CUresult CUDAAPI cuInit(unsigned int Flags);
CUresult CUDAAPI cuMemAlloc(void **dptr, unsigned long bytesize);
__CUDA_DEPRECATED CUresult CUDAAPI cuCtxAttach(void **pctx, unsigned int flags);
"""
HOST_CONFIG = "#if __GNUC__ > 14\n#error -- unsupported GNU version!\n#endif\n"


def declaration(name: str, more: str = "") -> str:
    kind = "float" if name.endswith("f") else "double"
    prefix = "extern __DEVICE_FUNCTIONS_DECL__ __device_builtin__"
    return f"{prefix} {kind}                 {name}({kind} x){more};\n"


MATH_H = "".join(
    f"/** {name}, with a byte that is no UTF-8: \xa0 */\n{declaration(name)}"
    for name in [*PI_NAMES, "erfinv", *RSQRT_NAMES]
)

needs_compiler = pytest.mark.skipif(
    shutil.which("gcc") is None or shutil.which("g++") is None, reason="gcc and g++ are needed"
)


@pytest.fixture
def toolkit(tmp_path: Path) -> Path:
    """A toolkit as wheels leave it: no links, no stub, programs that cannot be run."""
    root = tmp_path / "12.8-redist"

    def write(name: str, content: bytes, mode: int = 0o644) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)

    write("include/cuda.h", CUDA_H.encode())
    write("include/crt/host_config.h", HOST_CONFIG.encode())
    write("include/crt/math_functions.h", MATH_H.encode("latin-1"), 0o640)
    write("bin/nvcc", b"\x7fELF nvcc")
    write("bin/a-script", b"#!/bin/sh\n")
    write("bin/nvcc.profile", b"TOP = $(_HERE_)/..\n")
    write("bin/crt/link.stub", b"text")
    write("nvvm/bin/cicc", b"\x7fELF cicc", 0o700)
    for library in ("libcublas.so.12", "libcudart.so.12.8.90", "libcudart.so.12", "libculibos.a"):
        write(f"lib/{library}", b"\x7fELF")
    write("lib/libnvrtc-builtins.so.12.8", b"\x7fELF")
    return root


def finish(root: Path, glibc: tuple[int, int] | None = OLD_GLIBC) -> list[str]:
    found = lacks(root, glibc)
    complete(root, found)
    return [lack.told for lack in found]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@needs_compiler
def test_everything_is_added_once(toolkit: Path) -> None:
    assert [told.partition(":")[0] for told in finish(toolkit)] == [
        "lib64 -> lib",
        "lib/libcublas.so -> libcublas.so.12",
        "lib/libcudart.so -> libcudart.so.12",
        "lib/libnvrtc-builtins.so -> libnvrtc-builtins.so.12.8",
        "bin/a-script",
        "bin/nvcc",
        "nvvm/bin/cicc",
        "lib/stubs/libcuda.so",
    ]
    assert (toolkit / "lib64/libcublas.so").read_bytes() == b"\x7fELF"
    assert os.access(toolkit / "bin/nvcc", os.X_OK)
    assert [mode(toolkit / name) for name in ("bin/nvcc", "nvvm/bin/cicc")] == [0o755, 0o755]
    assert mode(toolkit / "bin/nvcc.profile") == 0o644
    assert lacks(toolkit, OLD_GLIBC) == []


def test_looking_changes_nothing(toolkit: Path) -> None:
    before = {path: path.lstat().st_mtime_ns for path in toolkit.rglob("*")}
    assert len(lacks(toolkit, RSQRT_GLIBC)) == 9
    assert before == {path: path.lstat().st_mtime_ns for path in toolkit.rglob("*")}


def test_what_is_there_stays(toolkit: Path) -> None:
    (toolkit / "lib/libcublas.so").symlink_to("libcublas.so.12.8.4.1")
    (toolkit / "lib/libcublas.so.12.8.4.1").write_bytes(b"\x7fELF")
    (toolkit / "lib/stubs").mkdir()
    (toolkit / "lib/stubs/libcuda.so").write_bytes(b"NVIDIA's own")
    (toolkit / "lib64").mkdir()
    finish(toolkit)
    assert (toolkit / "lib/libcublas.so").readlink() == Path("libcublas.so.12.8.4.1")
    assert (toolkit / "lib/stubs/libcuda.so").read_bytes() == b"NVIDIA's own"
    assert not (toolkit / "lib64").is_symlink()


@needs_compiler
def test_a_link_that_leads_nowhere_is_replaced(toolkit: Path) -> None:
    (toolkit / "lib/libcublas.so").symlink_to("libcublas.so.11")
    (toolkit / "lib64").symlink_to("targets/x86_64-linux/lib")
    finish(toolkit)
    assert (toolkit / "lib/libcublas.so").resolve() == toolkit / "lib/libcublas.so.12"
    assert (toolkit / "lib64").resolve() == toolkit / "lib"


@pytest.mark.parametrize(
    ("number", "text"),
    [("11080", "11.8"), ("12080", "12.8"), ("13000", "13.0"), ("13110", "13.11")],
)
def test_the_version_is_the_headers(toolkit: Path, number: str, text: str) -> None:
    header = toolkit / "include/cuda.h"
    header.write_text(CUDA_H.replace("12080", number))
    assert version(toolkit) == text


@pytest.mark.parametrize("missing", ["include/cuda.h", "lib"])
def test_a_folder_without_a_toolkit_is_refused(toolkit: Path, missing: str) -> None:
    path = toolkit / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ToolkitError, match=rf"{missing}.*needed: .*run again"):
        lacks(toolkit, OLD_GLIBC)


def test_a_header_that_names_no_version_is_refused(toolkit: Path) -> None:
    (toolkit / "include/cuda.h").write_text("<html>")
    with pytest.raises(ToolkitError, match="names no CUDA_VERSION"):
        version(toolkit)


# The exception specifications


@pytest.mark.parametrize(
    ("glibc", "names"),
    [
        (None, []),
        (OLD_GLIBC, []),
        ((2, 40), []),
        (PI_GLIBC, PI_NAMES),
        (RSQRT_GLIBC, PI_NAMES + RSQRT_NAMES),
        ((3, 0), PI_NAMES + RSQRT_NAMES),
    ],
)
def test_only_what_this_glibc_declares_too_is_edited(
    glibc: tuple[int, int] | None, names: list[str]
) -> None:
    expected = MATH_H
    for name in names:
        expected = expected.replace(declaration(name), declaration(name, " noexcept (true)"))
    assert patched_math_header(MATH_H, glibc) == expected
    assert patched_math_header(expected, glibc) == expected


@pytest.mark.parametrize(
    "more", [" __NV_IEC_60559_FUNCS_EXCEPTION_SPECIFIER", " _NV_RSQRT_SPECIFIER", " throw()"]
)
def test_a_header_that_knows_of_it_stays(more: str) -> None:
    text = "".join(declaration(name, more) for name in PI_NAMES + RSQRT_NAMES)
    assert patched_math_header(text, RSQRT_GLIBC) == text


def test_other_functions_and_overloads_stay() -> None:
    text = (
        declaration("erfinv")
        + "__MATH_FUNCTIONS_DECL__ float rsqrt(const float a);\n"
        + "__func__(double sinpi(double a));\n"
        + " * - sinpi(double x);\n"
        + declaration("sincospi").replace(" x)", " x, double *s, double *c)")
    )
    assert patched_math_header(text, RSQRT_GLIBC) == text


@needs_compiler
def test_the_header_keeps_its_other_bytes_and_its_mode(toolkit: Path) -> None:
    header = toolkit / "include/crt/math_functions.h"
    before = header.read_bytes()
    assert any("math_functions.h" in told for told in finish(toolkit, RSQRT_GLIBC))
    after = header.read_bytes()
    assert after != before
    assert after.replace(b" noexcept (true)", b"") == before
    assert mode(header) == 0o640
    assert finish(toolkit, RSQRT_GLIBC) == []


@needs_compiler
@pytest.mark.parametrize(
    ("glibc", "names"), [(PI_GLIBC, PI_NAMES), (RSQRT_GLIBC, PI_NAMES + RSQRT_NAMES)]
)
def test_a_compiler_takes_the_edited_header_beside_such_a_glibc(
    glibc: tuple[int, int], names: list[str], tmp_path: Path
) -> None:
    theirs = "".join(declaration(name, " noexcept (true)") for name in names)

    def compiles(header: str) -> bool:
        source = tmp_path / "both.cpp"
        macros = "#define __DEVICE_FUNCTIONS_DECL__\n#define __device_builtin__\n"
        source.write_text(f'{macros}extern "C" {{\n{header}{theirs}}}\n', encoding="latin-1")
        return (
            subprocess.run(["g++", "-std=c++17", "-fsyntax-only", source], check=False).returncode
            == 0
        )

    assert not compiles(MATH_H)
    assert compiles(patched_math_header(MATH_H, glibc))


def test_the_hosts_glibc_is_read() -> None:
    found = host_glibc()
    text = os.confstr("CS_GNU_LIBC_VERSION")
    assert text is not None
    assert found is not None
    assert text.startswith(f"glibc {found[0]}.{found[1]}")


# The driver's stand-in


@needs_compiler
def test_the_stub_answers_that_it_is_one(toolkit: Path) -> None:
    finish(toolkit)
    stub = toolkit / "lib/stubs/libcuda.so"
    library = ctypes.CDLL(str(stub))
    for name in ("cuInit", "cuMemAlloc_v2", "cuCtxAttach"):
        assert getattr(library, name)(0) == 34
    with pytest.raises(AttributeError):
        library.cuMemAlloc  # noqa: B018 - the name that the header's macro replaces
    assert b"libcuda.so.1\0" in stub.read_bytes()
    assert [path.name for path in stub.parent.iterdir()] == ["libcuda.so"]


def test_every_function_is_defined_once() -> None:
    text = (
        "CUresult cuB(int);\nextern CUresult\n  cuA (void);\nCUresult cuB(int);\nint cuC(void);\n"
    )
    assert stub_source(text) == ("int cuA(void) { return 34; }\nint cuB(void) { return 34; }\n")


@needs_compiler
def test_a_header_without_functions_makes_no_stub(toolkit: Path) -> None:
    (toolkit / "include/cuda.h").write_text("#define CUDA_VERSION 12080\n")
    with pytest.raises(ToolkitError, match="declares no function of the driver"):
        finish(toolkit)


@needs_compiler
def test_the_compilers_own_words_are_told(toolkit: Path) -> None:
    (toolkit / "include/cuda.h").write_text(f"{CUDA_H}\n#error no such platform\n")
    with pytest.raises(ToolkitError, match=r"(?s)'gcc -E .*ended with 1.*#error no such platform"):
        finish(toolkit)


def test_a_missing_compiler_is_told(toolkit: Path) -> None:
    with pytest.raises(ToolkitError, match=r"no-such-compiler cannot be run .* install one"):
        complete(toolkit, lacks(toolkit, OLD_GLIBC), "no-such-compiler")


# The module


@needs_compiler
def test_the_module_completes_a_toolkit(runner: PlayRunner, toolkit: Path) -> None:
    args = {"path": str(toolkit)}
    foreseen = runner.play("cuda_toolkit", args, options=["--check", "--diff"])
    assert foreseen.rc == 0, foreseen.output
    assert foreseen.result["changed"]
    assert "+lib64 -> lib" in foreseen.output
    assert not (toolkit / "lib64").exists()
    played = runner.play("cuda_toolkit", args, args)
    assert played.rc == 0, played.output
    first, second = played.results
    assert first["added"] == foreseen.result["added"]
    assert (first["changed"], first["version"], first["gcc_limit"]) == (True, "12.8", 14)
    assert (second["changed"], second["version"], second["added"]) == (False, "12.8", [])


def test_the_module_says_what_is_wrong(runner: PlayRunner, tmp_path: Path) -> None:
    played = runner.play("cuda_toolkit", {"path": str(tmp_path)})
    assert played.rc != 0
    assert "needed: a CUDA toolkit with bin, include and lib" in played.output
