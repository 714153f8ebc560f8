"""A builder without a GPU: the distribution's toolkit, a real CUDA build, a package for others."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from testbed.host_tests import Play, only_on, scenario_folder

pytestmark = only_on("kloros-builder")

CURRENT = "/opt/llama.cpp/current"
LIBRARY = f"{CURRENT}/bin/libggml-cuda.so"


@pytest.fixture
def built(host: Host) -> dict[str, Any]:
    """What the release says of itself."""
    described: dict[str, Any] = json.loads(host.file(f"{CURRENT}/BUILD_INFO.json").content_string)
    return described


def test_toolkit_is_the_distributions_own(host: Host, built: dict[str, Any]) -> None:
    assert built["identity"]["cuda"] == {
        "toolkit": "12.4",
        "architectures": ["61-real", "86-real"],
        "host_compiler": "13",
    }
    planned = json.loads(host.file("/etc/kloros-llm/plan.json").content_string)["llama_cpp"]["cuda"]
    assert planned == {
        "version": "12.4",
        "architectures": ["61-real", "86-real"],
        "host_compiler": "13",
    }
    assert host.package("nvidia-cuda-toolkit").is_installed


def test_no_other_archive_is_asked_than_before(host: Host) -> None:
    lists = host.check_output("grep --recursive --no-filename ^deb /etc/apt/sources.list*")
    assert "contrib non-free" in lists
    assert len({line.split()[1] for line in lists.splitlines()}) == 1
    assert host.run("ls /etc/apt/keyrings/* /usr/share/keyrings/*nvidia*").stdout == ""


def test_release_holds_machine_code_for_these_gpus_alone(host: Host) -> None:
    listed = host.check_output(f"cuobjdump --list-elf {LIBRARY}")
    assert set(re.findall(r"[.]sm_(\w+)", listed)) == {"61", "86"}
    assert "No PTX file found" in host.run(f"cuobjdump --list-ptx {LIBRARY}").stderr


def test_release_needs_nothing_of_the_toolkit(host: Host) -> None:
    dynamic = host.check_output(f"readelf --dynamic {LIBRARY}")
    assert "runpath: [$ORIGIN]" in dynamic
    assert "libcublas.so.12" in dynamic
    found = dict(re.findall(r"(lib\S+) => (\S+)", host.check_output(f"ldd {LIBRARY}")))
    release = host.check_output(f"readlink --canonicalize {CURRENT}/bin")
    own = [name for name in found if re.match(r"lib(cudart|cublas|ggml)", name)]
    assert {"libcudart.so.12", "libcublas.so.12", "libcublasLt.so.12"} <= set(own)
    assert {found[name].rsplit("/", 1)[0].replace("/current/", "/") for name in own} <= {
        release,
        f"{CURRENT}/bin".replace("/current/", "/"),
    }


def test_server_starts_where_there_is_no_driver(host: Host) -> None:
    assert host.run("test -e /dev/nvidiactl").rc != 0
    devices = host.run(f"{CURRENT}/bin/llama-server --list-devices")
    assert devices.rc == 0
    assert "CUDA" not in devices.stdout


def test_package_is_on_the_controller(host: Host, built: dict[str, Any], inventory: Path) -> None:
    name = f"llama.cpp-{built['name']}-x86_64.tar.gz"
    assert (scenario_folder(inventory) / "packages" / name).stat().st_size > 100 * 2**20


def test_nothing_more_to_do_though_the_toolkit_is_gone(host: Host, play: Play) -> None:
    """The toolkit may be removed: a release that is there needs none."""
    host.check_output("mv /usr/bin/nvcc /usr/bin/nvcc.away")
    try:
        run = play("--check", playbook="molecule/cuda/converge.yml")
    finally:
        host.check_output("mv /usr/bin/nvcc.away /usr/bin/nvcc")
    assert (run.returncode, run.changed) == (0, 0), run.output
