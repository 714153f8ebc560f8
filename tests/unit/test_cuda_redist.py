"""Which of NVIDIA's redistributable archives are taken; the server that stands in for theirs."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.cuda_redist import (
    ManifestError,
    archives,
    read_manifest,
)
from hypothesis import given
from hypothesis import strategies as st

from testbed.stand_in_redist import StandInRedist, pack
from tests.unit.conftest import PROJECT

OLD = ["cuda_nvcc", "cuda_cudart", "cuda_cccl", "libcublas", "cuda_cuobjdump"]
NEW = ["cuda_nvcc", "cuda_crt", "libnvvm", *OLD[1:]]
NEWER = [*NEW[:-1], "cuda_nvrtc", "cuda_cuobjdump"]
RENAMED = ["cccl" if name == "cuda_cccl" else name for name in NEWER]
# Components that NVIDIA's manifests of these releases have, besides those of no interest here.
OTHERS = ["cuda_nvrtc", "cuda_gdb", "nsight_compute"]


def entry(component: str, version: str, platform: str) -> dict[str, str]:
    name = f"{component}-{platform}-{version}-archive"
    return {
        "relative_path": f"{component}/{platform}/{name}.tar.xz",
        "sha256": hashlib.sha256(name.encode()).hexdigest(),
        "md5": "e0e41040716a4d6113410d7cb25c7906",
        "size": "951832",
    }


def manifest_of(components: list[str], nvcc: str) -> dict[str, Any]:
    """A manifest in NVIDIA's form, with what they mix into it."""
    made: dict[str, Any] = {
        "release_date": "2025-10-09",
        "cuda_compat": {
            "version": "595.71.05",
            "linux-x86_64": {"cuda13.2": entry("cuda_compat", "595.71.05", "linux-x86_64")},
            "cuda_variant": ["13.2"],
        },
        "driver_assistant": {
            "version": "0.22.95.05",
            "linux-all": entry("driver_assistant", "0.22.95.05", "source"),
        },
    }
    for component in {*components, *OTHERS}:
        version = nvcc if component == "cuda_nvcc" else "11.6.5.2"
        made[component] = {"name": component, "license": "CUDA Toolkit", "version": version} | {
            platform: entry(component, version, platform)
            for platform in ("linux-x86_64", "linux-sbsa", "windows-x86_64")
        }
    return made


@pytest.fixture
def manifest() -> dict[str, Any]:
    return manifest_of(NEW, "13.0.88")


@pytest.mark.parametrize(
    ("nvcc", "components"),
    [
        ("11.4.152", OLD),
        ("12.9.86", OLD),
        ("13.0.88", NEW),
        ("13.2.86", NEWER),
        ("13.4.92", RENAMED),
    ],
)
def test_each_release_gives_what_it_has(nvcc: str, components: list[str]) -> None:
    found = archives(manifest_of(components, nvcc), "x86_64")
    assert [archive["component"] for archive in found] == components


@pytest.mark.parametrize(
    ("architecture", "platform"), [("x86_64", "linux-x86_64"), ("aarch64", "linux-sbsa")]
)
def test_an_archive_is_its_platforms(
    manifest: dict[str, Any], architecture: str, platform: str
) -> None:
    expected = entry("cuda_nvcc", "13.0.88", platform)
    assert archives(manifest, architecture)[0] == {
        "component": "cuda_nvcc",
        "path": expected["relative_path"],
        "sha256": expected["sha256"],
        "size_bytes": 951832,
    }


@pytest.mark.parametrize("component", NEW)
def test_a_missing_part_is_an_error_that_says_which(
    manifest: dict[str, Any], component: str
) -> None:
    del manifest[component]
    with pytest.raises(ManifestError, match=rf"no component .*{component}.*needed: .*; get"):
        archives(manifest, "x86_64")


def test_a_part_that_is_not_made_for_the_machine(manifest: dict[str, Any]) -> None:
    del manifest["libcublas"]["linux-sbsa"]
    with pytest.raises(ManifestError, match=r"libcublas\.linux-sbsa: it is missing"):
        archives(manifest, "aarch64")


def test_an_architecture_that_nvidia_does_not_serve(manifest: dict[str, Any]) -> None:
    with pytest.raises(ManifestError, match="no archives for riscv64; needed: x86_64 or aarch64"):
        archives(manifest, "riscv64")


@pytest.mark.parametrize(
    "path",
    [
        "/etc/cron.d/x.tar.xz",
        "../../x.tar.xz",
        "cuda_nvcc/../../x.tar.xz",
        "./x.tar.xz",
        "cuda_nvcc//x.tar.xz",
        "https://elsewhere.example/x.tar.xz",
        "-x.tar.xz",
        "a/.x.tar.xz",
        "a b.tar.xz",
        "x.tar.xz?y",
        "x%2e%2e.tar.xz",
        "x.tar.xz\n",
        "ü.tar.xz",
        "aü.tar.xz",
        "x.zip",
        "",
        7,
        None,
    ],
)
def test_a_path_stays_below_the_manifests_folder(manifest: dict[str, Any], path: object) -> None:
    manifest["cuda_nvcc"]["linux-x86_64"]["relative_path"] = path
    with pytest.raises(ManifestError, match=r"cuda_nvcc\.linux-x86_64\.relative_path"):
        archives(manifest, "x86_64")


@given(st.text(alphabet="ab/.-_ \\\n~", max_size=12))
def test_no_path_escapes(path: str) -> None:
    manifest = manifest_of(NEW, "13.0.88")
    manifest["cuda_nvcc"]["linux-x86_64"]["relative_path"] = f"{path}.tar.xz"
    try:
        taken = archives(manifest, "x86_64")[0]["path"]
    except ManifestError:
        return
    base = Path("/base")
    assert (base / taken).resolve().is_relative_to(base)
    assert not Path(taken).name.startswith(("-", "."))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sha256", "abc"),
        ("sha256", None),
        ("sha256", "g" * 64),
        ("sha256", 1),
        ("size", "0"),
        ("size", "-1"),
        ("size", "1e9"),
        ("size", None),
        ("size", True),
        ("size", "9" * 30),
    ],
)
def test_digest_and_size_have_their_form(manifest: dict[str, Any], key: str, value: object) -> None:
    manifest["libcublas"]["linux-x86_64"][key] = value
    with pytest.raises(ManifestError, match=rf"libcublas\.linux-x86_64\.{key}: it is"):
        archives(manifest, "x86_64")


@pytest.mark.parametrize(
    ("where", "value"),
    [(("cuda_nvcc",), []), (("cuda_nvcc", "linux-x86_64"), "x"), (("cuda_nvcc", "version"), 13)],
)
def test_parts_of_another_type_are_refused(
    manifest: dict[str, Any], where: tuple[str, ...], value: object
) -> None:
    target = manifest
    for key in where[:-1]:
        target = target[key]
    target[where[-1]] = value
    with pytest.raises(ManifestError, match=r"\.".join(where)):
        archives(manifest, "x86_64")


@pytest.mark.parametrize("text", ["", "<html>404</html>", "[]", "null", '"x"', "[" * 100_000])
def test_what_is_no_manifest_is_told(text: str) -> None:
    with pytest.raises(ManifestError, match="the manifest: it is"):
        read_manifest(text)


def test_a_long_value_is_cut_in_the_message(manifest: dict[str, Any]) -> None:
    manifest["libcublas"]["linux-x86_64"]["sha256"] = "x" * 10_000
    with pytest.raises(ManifestError) as refused:
        archives(manifest, "x86_64")
    assert len(str(refused.value)) < 400


def test_the_filter_in_a_play(
    run_play: Callable[..., subprocess.CompletedProcess[str]], manifest: dict[str, Any]
) -> None:
    task = {
        "ansible.builtin.assert": {
            "that": [
                "found | map(attribute='component') | list == components",
                "found[0].path | basename is match('cuda_nvcc-linux-sbsa')",
            ]
        },
        "vars": {"found": "{{ text | b64decode | cuda_redist_archives('aarch64') }}"},
    }
    text = json.dumps(manifest)
    encoded = "{{ " + repr(text) + " | b64encode }}"
    done = run_play([task], text=encoded, components=NEW)
    assert done.returncode == 0, done.stdout + done.stderr
    refused = run_play([task], text="{{ '<html>' | b64encode }}", components=NEW)
    assert refused.returncode != 0
    assert "the manifest: it is no JSON" in refused.stdout + refused.stderr


# The lists of wheels, the other way to a private toolkit


@pytest.mark.parametrize("version", ["13.0", "13.1", "13.2", "13.3", "13.4", "13.5"])
def test_wheels_are_pinned_and_of_one_release(version: str) -> None:
    folder = PROJECT / "roles/llama_cpp/files/cuda_pypi"
    text = (folder / f"{version}.txt").read_text(encoding="utf-8")
    pins = dict(line.split()[0].split("==") for line in text.splitlines() if line[:1].isalpha())
    assert pins["cuda-toolkit"].startswith(f"{version}.")
    # Without pins of their own, pip takes the newest of these two whatever nvcc's is.
    assert pins["nvidia-nvvm"] == pins["nvidia-cuda-crt"] == pins["nvidia-cuda-nvcc"]
    assert {"nvidia-cublas", "nvidia-cuda-cccl", "nvidia-cuda-runtime"} < pins.keys()
    assert "nvidia-cuda-cuobjdump" in pins
    assert text.count("--hash=sha256:") >= 2 * len(pins) - 1  # two platforms; cuda-toolkit has none
    assert "://" not in text


# The stand-in of NVIDIA's server


@pytest.fixture
def toolkit(tmp_path: Path) -> Path:
    """A toolkit as pip lays it out, with a byte or two in each file."""
    root = tmp_path / "cu13"
    for name in (
        "bin/nvcc",
        "bin/nvcc.profile",
        "bin/crt/link.stub",
        "bin/cuobjdump",
        "include/cuda.h",
        "include/cuda_runtime.h",
        "include/cublas_v2.h",
        "include/nvvm.h",
        "include/crt/math_functions.h",
        "include/cccl/cub/version.cuh",
        "lib/libcudart.so.13",
        "lib/libcudart_static.a",
        "lib/libcublasLt.so.13",
        "lib/stubs/libcuda.so",
        "nvvm/bin/cicc",
        "COMPLETE",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (root / "lib/libcudart.so").symlink_to("libcudart.so.13")
    (root / "lib64").symlink_to("lib")
    return root


def test_the_stand_in_serves_a_toolkit_as_nvidia_does(toolkit: Path, tmp_path: Path) -> None:
    pack(toolkit, "13.0.2", tmp_path / "root")
    unpacked = tmp_path / "unpacked"
    with StandInRedist(tmp_path / "root") as server:
        with urllib.request.urlopen(f"{server.redist_url}/redistrib_13.0.2.json") as answer:  # noqa: S310
            manifest = read_manifest(answer.read().decode())
        for archive in archives(manifest, "x86_64"):
            url = f"{server.redist_url}/{archive['path']}"
            half = archive["size_bytes"] // 2
            parts = []
            for part in (f"bytes=0-{half - 1}", f"bytes={half}-"):
                request = urllib.request.Request(url, headers={"Range": part})  # noqa: S310
                with urllib.request.urlopen(request) as answer:  # noqa: S310
                    assert answer.status == 206
                    parts.append(answer.read())
            assert hashlib.sha256(b"".join(parts)).hexdigest() == archive["sha256"]
            local = tmp_path / "archive.tar.xz"
            local.write_bytes(b"".join(parts))
            with tarfile.open(local) as tar:
                tops = {name.split("/")[0] for name in tar.getnames()}
                assert tops == {Path(archive["path"]).name.removesuffix(".tar.xz")}
                tar.extractall(unpacked, filter="data")
        assert {record.status for record in server.requests} == {200, 206}
    got = {
        path.relative_to(unpacked).as_posix().partition("/")[2]
        for path in unpacked.rglob("*")
        if path.is_file()
    }
    there = {
        path.relative_to(toolkit).as_posix()
        for path in toolkit.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    assert got == there - {"lib/stubs/libcuda.so", "COMPLETE"}


def test_what_is_packed_is_not_packed_again(toolkit: Path, tmp_path: Path) -> None:
    first = pack(toolkit, "13.0.2", tmp_path / "root")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "root").rglob("*")}
    assert pack(toolkit, "13.0.2", tmp_path / "root") == first
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "root").rglob("*")}


def test_the_stand_in_wants_a_toolkit(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no toolkit"):
        pack(tmp_path, "13.0.2", tmp_path / "root")
