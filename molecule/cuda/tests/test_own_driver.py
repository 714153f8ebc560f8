"""A host with a driver that is not the distribution's: private toolkits, for its GPUs alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from testinfra.host import Host

from testbed.cache import cache_folder
from testbed.host_tests import PROJECT, Play, only_on

pytestmark = only_on("kloros-own-driver")

CURRENT = "/opt/llama.cpp/current"
LIBRARY = f"{CURRENT}/bin/libggml-cuda.so"
TOOLKITS = "/var/cache/kloros-llm/cuda"
CARDS = [("NVIDIA GeForce RTX 4090", "8.9", 24564), ("NVIDIA RTX A4000", "8.6", 16376)]
STATE = {
    "fault": None,
    "driver": {"version": "580.65.06", "cuda_version": "13.0"},
    "gpus": [
        {
            "index": index,
            "uuid": f"GPU-0000000{index}-1111-2222-3333-444444444444",
            "name": name,
            "compute_capability": capability,
            "memory_total_mib": memory,
            "base_used_mib": 1,
            "bus_id": f"00000000:0{index + 1}:00.0",
        }
        for index, (name, capability, memory) in enumerate(CARDS)
    ],
}


@pytest.fixture(autouse=True)
def cards(host: Host) -> None:
    host.check_output("printf %%s %s > /etc/stand_in_nvidia_smi/state.json", json.dumps(STATE))


def machine_code(host: Host, toolkit: str) -> set[str]:
    listed = host.check_output(f"{toolkit}/bin/cuobjdump --list-elf {LIBRARY}")
    return set(re.findall(r"[.]sm_(\w+)", listed))


def assert_nothing_in_usr(host: Host) -> None:
    """No file of a toolkit in the system's folders, no archive but the distribution's."""
    names = ("nvcc", "ptxas", "cuda_runtime*.h", "cublas*.h", "libcudart*", "libcublas*")
    tests = " -o ".join(f"-name '{name}'" for name in names)
    assert host.check_output(f"find /usr /etc /root -xdev \\( {tests} \\)") == ""
    lists = host.check_output("grep --recursive --no-filename . /etc/apt/sources.list*")
    assert "nvidia" not in lists


def test_toolkit_from_pypi(host: Host, play: Play) -> None:
    host.check_output(f"rm -rf {TOOLKITS}")  # an earlier run's
    run = play(playbook="molecule/default/releases_only.yml")
    assert run.returncode == 0, run.output
    said = " ".join(run.output.split())  # long lines are folded
    assert f"CUDA 13.0 comes from PyPI into {TOOLKITS}/13.0-pypi" in said
    assert "second driver library" in said
    assert machine_code(host, f"{TOOLKITS}/13.0-pypi") == {"86", "89"}
    assert "libcublasLt.so.13 => /opt/llama.cpp/" in host.check_output(f"ldd {LIBRARY}")
    assert "[$ORIGIN]" in host.check_output(f"readelf --dynamic {LIBRARY} | grep -i runpath")
    assert_nothing_in_usr(host)


def test_release_that_is_there_needs_no_toolkit(host: Host, play: Play) -> None:
    host.check_output(f"mv {TOOLKITS}/13.0-pypi {TOOLKITS}/away")
    try:
        run = play(playbook="molecule/default/releases_only.yml")
    finally:
        host.check_output(f"mv {TOOLKITS}/away {TOOLKITS}/13.0-pypi")
    assert (run.returncode, run.changed) == (0, 0), run.output


@pytest.fixture
def archives(tmp_path: Path) -> Iterator[str]:
    """A server of NVIDIA's layout, with the toolkit that came from PyPI."""
    address = subprocess.run(
        [sys.executable, "-m", "testbed.container_host", "gateway", "kloros-own-driver"],
        cwd=PROJECT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    toolkit = cache_folder() / "hosts/trixie/cuda/13.0-pypi"
    listens = tmp_path / "pid"
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "testbed.stand_in_redist", "--release=13.0.2", "--port=8096"),
            *(f"--bind={address}", f"--toolkit={toolkit}", f"--root={tmp_path / 'redist'}"),
            f"--pid-file={listens}",
        ],
        cwd=PROJECT,
    )
    try:
        while not listens.exists():  # it packs the archives first
            assert server.poll() is None
            time.sleep(0.2)
        yield f"http://{address}:8096/compute/cuda/redist"
    finally:
        server.terminate()
        server.wait(timeout=30)


def test_toolkit_from_nvidias_archives(host: Host, play: Play, archives: str) -> None:
    host.check_output(f"rm -rf {TOOLKITS}/13.0-redist")
    run = play(
        playbook="molecule/default/releases_only.yml",
        llama_cpp_cuda_architectures="86-real",
        llama_cpp_cuda_toolkit="redist",
        llama_cpp_cuda_version="13.0",
        llama_cpp_cuda_redist_url=archives,
    )
    assert run.returncode == 0, run.output
    assert host.file(f"{TOOLKITS}/13.0-redist/COMPLETE").exists
    assert machine_code(host, f"{TOOLKITS}/13.0-redist") == {"86"}
    assert_nothing_in_usr(host)
