"""What is made of nvidia-smi's outputs, and the stand-in that prints them on hosts without a GPU.

The core runs a real program each time: one that plays back a file, or the stand-in.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.kloros.llm.plugins.module_utils import nvidia_smi
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parent / "data" / "nvidia-smi"
STAND_IN = ROOT / "testbed" / "stand_in_nvidia_smi.py"
KLOROS = json.loads((ROOT / "testbed/data/nvidia_smi_kloros.json").read_text(encoding="utf-8"))
RTX_3060, GTX_1080_TI = (gpu["uuid"] for gpu in KLOROS["gpus"])


@dataclass(frozen=True)
class Host:
    """A host with a tool of its own and a sysfs of its own."""

    tools: Path
    sysfs: Path

    def install(self, script: str) -> None:
        tool = self.tools / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        tool.chmod(0o755)

    def play_back(self, query: Path, log: Path, *, query_rc: int = 0, log_rc: int = 0) -> None:
        """A tool that prints recorded files."""
        self.install(
            f'case "$1" in\n'
            f"--query-gpu=*) cat {shlex.quote(str(query))}; exit {query_rc};;\n"
            f"-q) cat {shlex.quote(str(log))}; exit {log_rc};;\n"
            f"esac"
        )

    def play_back_set(self, name: str) -> None:
        self.play_back(DATA / name / "gpus.csv", DATA / name / "log.xml")

    def add_gpu(self, address: str, driver: str | None = None, kind: str = "0x030000") -> None:
        device = self.sysfs / "bus/pci/devices" / address
        device.mkdir(parents=True)
        (device / "vendor").write_text("0x10de\n")
        (device / "class").write_text(f"{kind}\n")
        if driver is not None:
            holder = self.sysfs / "bus/pci/drivers" / driver
            holder.mkdir(parents=True, exist_ok=True)
            (device / "driver").symlink_to(holder)

    def load(self, module: str, version: str | None = None) -> None:
        folder = self.sysfs / "module" / module
        folder.mkdir(parents=True)
        if version is not None:
            (folder / "version").write_text(f"{version}\n")

    def look(self, timeout_s: float = 20) -> nvidia_smi.GpuInfo:
        return nvidia_smi.gpu_info(folders=[str(self.tools)], sysfs=self.sysfs, timeout_s=timeout_s)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host without GPUs, whose PATH has no nvidia-smi, whatever this machine has."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("cat", "env", "python3", "sh", "sleep", "timeout"):
        found = sys.executable if name == "python3" else f"/usr/bin/{name}"
        (programs / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(programs))
    made = Host(tmp_path / "tools", tmp_path / "sys")
    made.tools.mkdir()
    made.sysfs.mkdir()
    return made


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# --- what is read ---------------------------------------------------------------------------------


def test_kloros(host: Host) -> None:
    host.play_back_set("kloros")
    assert host.look() == {
        "status": "ok",
        "detail": (
            "2 GPUs on driver 550.163.01 (CUDA 12.4): "
            "NVIDIA GeForce RTX 3060, NVIDIA GeForce GTX 1080 Ti"
        ),
        "cure": "",
        "driver": {"version": "550.163.01", "cuda_version": "12.4"},
        "gpus": [
            {
                "index": 0,
                "uuid": RTX_3060,
                "name": "NVIDIA GeForce RTX 3060",
                "compute_capability": "8.6",
                "memory_total_mib": 12288,
                "memory_free_mib": 11867,
                "bus_id": "00000000:06:00.0",
                "mig": False,
                "processes": [
                    {"pid": 1604, "name": "/usr/lib/xorg/Xorg", "used_mib": 94},
                    {"pid": 2217, "name": "/usr/lib/chromium/chromium", "used_mib": 71},
                ],
            },
            {
                "index": 1,
                "uuid": GTX_1080_TI,
                "name": "NVIDIA GeForce GTX 1080 Ti",
                "compute_capability": "6.1",
                "memory_total_mib": 11264,
                "memory_free_mib": 11108,
                "bus_id": "00000000:07:00.0",
                "mig": False,
                "processes": [
                    {"pid": 40211, "name": "/home/kloros/voice env/bin/python3", "used_mib": 61}
                ],
            },
        ],
    }


def test_kloros_with_the_planned_gpu(host: Host) -> None:
    host.play_back_set("kloros_5080")
    found = host.look()
    assert found["driver"] == {"version": "570.172.08", "cuda_version": "12.8"}
    assert [
        (gpu["index"], gpu["compute_capability"], gpu["memory_total_mib"]) for gpu in found["gpus"]
    ] == [(0, "8.6", 12288), (1, "6.1", 11264), (2, "12.0", 16303)]


def test_processes_of_a_container_have_neither_name_nor_memory(host: Host) -> None:
    host.play_back_set("h100")
    (gpu,) = host.look()["gpus"]
    assert gpu["mig"] is False
    assert gpu["processes"] == [
        {"pid": 815, "name": None, "used_mib": None},
        {"pid": 816, "name": None, "used_mib": None},
    ]


def test_mig_is_noted_and_the_memory_is_the_whole_gpu_s(host: Host) -> None:
    host.play_back_set("a100_mig")
    (gpu,) = host.look()["gpus"]
    assert gpu["mig"] is True
    assert gpu["memory_total_mib"] == 81920
    assert gpu["processes"] == [{"pid": 7741, "name": "python3", "used_mib": 2998}]


def test_a_gpu_that_shares_the_host_s_memory_has_none_of_its_own(host: Host) -> None:
    host.play_back_set("gb10")
    (gpu,) = host.look()["gpus"]
    assert (gpu["memory_total_mib"], gpu["memory_free_mib"]) == (None, None)
    assert gpu["compute_capability"] == "12.1"
    assert gpu["processes"][0]["used_mib"] == 9214


def test_an_old_driver_does_not_know_the_compute_capability(host: Host) -> None:
    old = DATA / "gtx960_390"
    host.install(
        f'case "$1" in\n'
        f"--query-gpu=*compute_cap*) cat {old}/no_compute_cap.txt; exit 2;;\n"
        f"--query-gpu=*) cat {old}/gpus.csv;;\n"
        f"-q) cat {old}/log.xml;;\n"
        f"esac"
    )
    found = host.look()
    assert found["status"] == "ok"
    assert found["driver"] == {"version": "390.157", "cuda_version": None}
    (gpu,) = found["gpus"]
    assert gpu["compute_capability"] is None
    assert (gpu["name"], gpu["memory_total_mib"]) == ("GeForce GTX 960", 4043)
    assert gpu["processes"] == []


def test_a_corrupted_inforom_is_a_warning(host: Host, tmp_path: Path) -> None:
    warning = "WARNING: infoROM is corrupted at gpu 0000:06:00.0\n"
    gpus = (DATA / "kloros/gpus.csv").read_text(encoding="utf-8")
    log = (DATA / "kloros/log.xml").read_text(encoding="utf-8")
    host.play_back(
        write(tmp_path / "gpus", warning + gpus + warning),
        write(tmp_path / "log", warning + log + warning),
        query_rc=14,
        log_rc=14,
    )
    found = host.look()
    assert found["status"] == "ok"
    assert len(found["gpus"]) == 2
    assert found["gpus"][0]["processes"]


def test_a_name_with_commas_survives(host: Host, tmp_path: Path) -> None:
    gpus = (DATA / "h100/gpus.csv").read_text(encoding="utf-8")
    named = gpus.replace("NVIDIA H100 80GB HBM3", "GRID A, B, 8.6, C")
    host.play_back(write(tmp_path / "gpus", named), DATA / "h100/log.xml")
    (gpu,) = host.look()["gpus"]
    assert gpu["name"] == "GRID A, B, 8.6, C"
    assert gpu["compute_capability"] == "9.0"


def test_a_field_that_is_withheld_is_no_fault(host: Host, tmp_path: Path) -> None:
    gpus = (DATA / "h100/gpus.csv").read_text(encoding="utf-8")
    withheld = gpus.replace("76881", "[Insufficient Permissions]")
    host.play_back(write(tmp_path / "gpus", withheld), DATA / "h100/log.xml")
    found = host.look()
    assert found["status"] == "ok"
    assert found["gpus"][0]["memory_free_mib"] is None


def test_path_comes_before_the_folders_of_drivers(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.play_back_set("h100")
    assert host.look()["gpus"][0]["compute_capability"] == "9.0"
    on_path = Host(tmp_path / "on_path", host.sysfs)
    on_path.tools.mkdir()
    on_path.play_back_set("kloros")
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{on_path.tools}")
    assert host.look()["gpus"][0]["compute_capability"] == "8.6"


# --- what is wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "status", "detail", "cure"),
    [
        ("18_mismatch", "driver_mismatch", "the libraries are 550.170", "reboot"),
        ("18_mismatch_old", "driver_mismatch", "the libraries are of another", "reboot"),
        ("9_not_loaded", "driver_not_loaded", "does not reach the driver", "no GPU"),
        ("6_no_devices", "no_gpus", "finds no GPU", "Fit a GPU"),
        ("255_lost_unknown_error", "failed", "handle for GPU0000:07:00.0: Unknown", "reboot"),
        ("15_lost", "failed", "GPU 0000:07:00.0: GPU is lost.", "reboot"),
        ("0_lost_while_running", "failed", "1, [GPU is lost], ", "reboot"),
        ("4_permissions", "failed", "Insufficient Permissions", "root"),
        ("12_no_library", "failed", "couldn't find libnvidia-ml.so", "libnvidia-ml1"),
        ("255_unknown_error", "failed", "NVML: Unknown Error", "restart the container"),
    ],
)
def test_fault(host: Host, name: str, status: str, detail: str, cure: str) -> None:
    file = DATA / "faults" / f"{name}.txt"
    rc = int(name.partition("_")[0])
    host.play_back(file, file, query_rc=rc, log_rc=rc)
    found = host.look()
    assert found["status"] == status
    assert detail in found["detail"]
    assert "\n" not in found["detail"]
    assert cure in found["cure"]
    assert (found["driver"], found["gpus"]) == (None, [])
    # The GPU may be lost between the two questions, too.
    host.play_back(DATA / "kloros/gpus.csv", file, log_rc=rc)
    assert host.look() == found


def test_a_lost_gpu_is_not_passed_over_for_the_others(host: Host, tmp_path: Path) -> None:
    lines = (DATA / "kloros/gpus.csv").read_text(encoding="utf-8").splitlines()
    lost = "Unable to determine the device handle for gpu 0000:07:00.0: Unknown Error"
    host.play_back(write(tmp_path / "gpus", f"{lines[0]}\n{lost}\n"), DATA / "kloros/log.xml")
    assert host.look()["status"] == "failed"
    assert host.look()["detail"] == lost


def test_a_mismatch_names_both_versions(host: Host) -> None:
    file = DATA / "faults/18_mismatch.txt"
    host.load("nvidia", "550.163.01")
    host.play_back(file, file, query_rc=18)
    found = host.look()
    assert "nvidia 550.163.01 is loaded, the libraries are 550.170" in found["detail"]
    assert "modprobe -r" in found["cure"]


def test_no_tool_and_no_gpu(host: Host) -> None:
    host.add_gpu("0000:06:00.1", kind="0x040300")  # a GPU's sound device
    found = host.look()
    assert found["status"] == "no_tool"
    assert "shows no NVIDIA GPU" in found["detail"]
    assert found["cure"].startswith("Build for the CPU")


def test_no_tool_and_a_gpu_without_driver(host: Host) -> None:
    host.add_gpu("0000:06:00.0", "nouveau")
    host.add_gpu("0000:07:00.0", kind="0x030200")
    host.load("nouveau")
    found = host.look()
    assert found["status"] == "no_tool"
    assert "nvidia is not loaded, nouveau is" in found["detail"]
    assert (
        "2 NVIDIA GPUs (0000:06:00.0 held by nouveau, 0000:07:00.0 held by no driver)"
        in found["detail"]
    )
    assert found["cure"].startswith("Install NVIDIA's driver")


def test_no_tool_and_a_driver(host: Host) -> None:
    host.add_gpu("0000:06:00.0", "nvidia")
    host.load("nvidia", "550.163.01")
    found = host.look()
    assert "nvidia 550.163.01 is loaded" in found["detail"]
    assert found["cure"].startswith("Install nvidia-smi in the version")


@pytest.mark.parametrize(
    ("modules", "gpu", "detail", "cure"),
    [
        ([], True, "nvidia is not loaded; the PCI bus shows 1 NVIDIA GPU", "modprobe nvidia"),
        (["nouveau"], True, "not loaded, nouveau is;", "Keep nouveau from loading"),
        (["nvidia"], True, "(of unknown version) is loaded", "does not answer"),
        (["nvidia"], False, "shows no NVIDIA GPU", "does not answer"),
    ],
)
def test_driver_not_loaded(
    host: Host, modules: list[str], gpu: bool, detail: str, cure: str
) -> None:
    for module in modules:
        host.load(module)
    if gpu:
        host.add_gpu("0000:06:00.0")
    file = DATA / "faults/9_not_loaded.txt"
    host.play_back(file, file, query_rc=9)
    found = host.look()
    assert found["status"] == "driver_not_loaded"
    assert detail in found["detail"]
    assert cure in found["cure"]


def test_a_driver_that_refuses_its_gpu(host: Host) -> None:
    host.load("nvidia", "595.45.04")
    host.add_gpu("0000:07:00.0")
    file = DATA / "faults/6_no_devices.txt"
    host.play_back(file, file, query_rc=6)
    found = host.look()
    assert "0000:07:00.0" in found["detail"]
    assert "too old for this driver" in found["cure"]


@pytest.mark.parametrize("script", ["exec sleep 600", "trap '' TERM\nwhile :; do sleep 0.1; done"])
def test_a_tool_that_hangs(host: Host, script: str) -> None:
    host.install(script)
    found = host.look(timeout_s=0.2)
    assert found["status"] == "failed"
    assert "no answer" in found["detail"]
    host.install(f'case "$1" in\n-q) {script};;\n*) cat {DATA}/kloros/gpus.csv;;\nesac')
    assert host.look(timeout_s=0.5) == found


def test_a_tool_that_cannot_even_be_killed_is_left_behind(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As of a process in the driver, neither its end nor that of its output is waited for.
    pid_file = tmp_path / "pid"
    guard = tmp_path / "programs" / "timeout"
    guard.unlink()
    guard.write_text(f"#!/bin/sh\nsleep 600 &\necho $! > {pid_file}\nwait\n")
    guard.chmod(0o755)
    monkeypatch.setattr(nvidia_smi, "_GIVE_UP_AFTER_S", 2)
    host.install("exit 0")
    found = host.look(timeout_s=0)
    left = int(pid_file.read_text())
    os.kill(left, signal.SIGKILL)  # fails where it has ended
    assert "no answer" in found["detail"]


@pytest.mark.parametrize(
    ("script", "detail"),
    [
        ("exit 0", "listed no GPUs (exit status 0): no output"),
        ("echo Segmentation fault; exit 139", "failed (exit status 139): Segmentation fault"),
        (f"cat {DATA}/kloros/gpus.csv; exit 3", "failed (exit status 3): 1, GPU-"),
        (
            "echo '0, GPU-12, 8.6, 12288'",
            "printed half a GPU (exit status 0): 0, GPU-12, 8.6, 1228",
        ),
        ("echo '0, MIG-12, 8.6, 1, 1, 0:1, 550.1, A100'", "printed half a GPU"),
        (
            f'case "$1" in\n-q) echo "<nvidia_smi_log><gpu>";;\n'
            f"*) cat {DATA}/h100/gpus.csv;;\nesac",
            "printed no readable XML (exit status 0): <nvidia_smi_log><gpu>",
        ),
        (
            f'case "$1" in\n-q) echo "<nvidia_smi_log><gpu></nvidia_smi_log>";;\n'
            f"*) cat {DATA}/h100/gpus.csv;;\nesac",
            "printed no readable XML (exit status 0): mismatched tag",
        ),
    ],
)
def test_what_nobody_has_foreseen_is_shown(host: Host, script: str, detail: str) -> None:
    host.install(script)
    found = host.look()
    assert found["status"] == "failed"
    assert detail in found["detail"]
    assert "\n" not in found["detail"]


# --- XML with anything in it ----------------------------------------------------------------------


def log_of(process_name: str, doctype: str = "") -> str:
    return (
        f'<?xml version="1.0" ?>\n{doctype}\n<nvidia_smi_log><gpu><uuid>GPU-1</uuid><processes>'
        f"<process_info><pid>7</pid><process_name>{process_name}</process_name>"
        "<used_memory>5 MiB</used_memory></process_info></processes></gpu></nvidia_smi_log>"
    )


def name_in(log: str) -> str | None:
    return nvidia_smi.parse_log(log).findtext("gpu/processes/process_info/process_name")


@given(st.text().filter(lambda text: "</process_name>" not in text))
def test_no_process_can_break_the_log_by_its_name(name: str) -> None:
    nvidia_smi.parse_log(log_of(name))


def test_process_names_are_escaped_once() -> None:
    assert name_in(log_of("a<b>&c;\x01")) == "a<b>&c;\ufffd"
    assert name_in(log_of("a&lt;b&gt;&amp;c")) == "a<b>&c"


@given(st.text(alphabet='<>/&;! abgpu"=[]\x00\x0c'))
def test_a_log_of_anything_is_read_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        nvidia_smi.parse_log(f"<nvidia_smi_log>{text}</nvidia_smi_log>")


@given(st.lists(st.text(alphabet="0123456789, GPU-abc[]./:NA\n", max_size=60)))
def test_rows_of_anything_are_gpus_or_a_value_error(lines: list[str]) -> None:
    try:
        gpus, _ = nvidia_smi.parse_gpus("\n".join(f"0, GPU-{line}" for line in lines))
    except ValueError:
        return
    assert all(gpu["uuid"].startswith("GPU-") for gpu in gpus)


def test_no_entity_is_expanded_and_no_file_is_read() -> None:
    doctype = (
        '<!DOCTYPE nvidia_smi_log [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;">'
        '<!ENTITY f SYSTEM "file:///etc/passwd">]>'
    )
    assert name_in(log_of("&b;&f;", doctype)) == "&b;&f;"
    with pytest.raises(ValueError, match="undefined entity"):
        nvidia_smi.parse_log(log_of("x", doctype).replace("GPU-1", "&b;"))


def test_a_log_beyond_all_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="characters of XML"):
        nvidia_smi.parse_log(log_of("x" * 2**24))


# --- the stand-in ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class StandIn:
    """The stand-in, installed on a host, and its state."""

    state: Path

    def set(self, **changes: Any) -> None:
        self.state.write_text(json.dumps(KLOROS | changes), encoding="utf-8")

    def ask(self, *arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, STAND_IN, *arguments], capture_output=True, text=True, check=False
        )
        assert done.stderr == ""
        return done.returncode, done.stdout


@pytest.fixture
def stand_in(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    (host.tools / "nvidia-smi").symlink_to(STAND_IN)
    monkeypatch.setenv("STAND_IN_NVIDIA_SMI_STATE", str(tmp_path / "state.json"))
    made = StandIn(tmp_path / "state.json")
    made.set()
    return made


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Any]:
    """Starts processes named llama-server that hold 64 MiB."""
    program = tmp_path / "llama-server"
    program.write_bytes(Path("/usr/bin/dd").read_bytes())
    program.chmod(0o755)
    started: list[subprocess.Popen[bytes]] = []

    def start(**variables: str) -> int:
        process = subprocess.Popen(
            [program, "if=/dev/zero", "bs=64M", "count=1"],
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        started.append(process)
        assert process.stdout is not None
        process.stdout.read(1)  # then its block is in memory, and it waits for a reader of the rest
        return process.pid

    yield start
    for process in started:
        process.kill()
        process.communicate()


def used_by(found: nvidia_smi.GpuInfo, pid: int) -> list[int | None]:
    """For each GPU, what that process holds of it."""
    return [
        sum(item["used_mib"] or 0 for item in gpu["processes"] if item["pid"] == pid)
        for gpu in found["gpus"]
    ]


def test_stand_in_prints_the_kloros_host(host: Host, stand_in: StandIn) -> None:
    stand_in.state.with_name("no_processes").touch()
    from_stand_in = host.look()
    (host.tools / "nvidia-smi").unlink()
    host.play_back_set("kloros")
    recorded = host.look()
    for gpu in recorded["gpus"]:
        gpu["processes"] = []
    assert from_stand_in == recorded


@pytest.mark.parametrize(
    ("fault", "rc", "status"),
    [
        ("mismatch", 18, "driver_mismatch"),
        ("not_loaded", 9, "driver_not_loaded"),
        ("no_devices", 6, "no_gpus"),
        ("lost", 15, "failed"),
    ],
)
def test_stand_in_fails_as_told(
    host: Host, stand_in: StandIn, fault: str, rc: int, status: str
) -> None:
    stand_in.set(fault=fault)
    assert host.look()["status"] == status
    for arguments in (["-L"], ["-q", "-x"], ["--query-gpu=name", "--format=csv"]):
        assert stand_in.ask(*arguments)[0] == rc


def test_stand_in_without_gpus_and_with_an_old_driver(host: Host, stand_in: StandIn) -> None:
    stand_in.set(gpus=[])
    assert host.look()["status"] == "no_gpus"
    stand_in.set(
        driver={"version": "390.157", "cuda_version": None},
        gpus=[KLOROS["gpus"][1] | {"compute_capability": None}],
    )
    found = host.look()
    assert found["driver"] == {"version": "390.157", "cuda_version": None}
    assert found["gpus"][0]["compute_capability"] is None


def test_stand_in_shows_a_server_on_the_gpu_that_it_was_given(
    host: Host, stand_in: StandIn, server: Any
) -> None:
    pid = server(CUDA_VISIBLE_DEVICES=GTX_1080_TI)
    after = host.look()
    assert used_by(after, pid)[0] == 0
    used = used_by(after, pid)[1]
    assert used is not None
    assert used >= 64
    status, listed = stand_in.ask(
        "--query-compute-apps=pid,gpu_uuid,used_memory", "--format=csv,noheader,nounits"
    )
    assert status == 0
    # Others' servers on this machine may be shown too.
    own = [line for line in listed.splitlines() if line.startswith(f"{pid}, ")]
    assert own == [f"{pid}, {GTX_1080_TI}, {used}"]
    stand_in.state.with_name("no_processes").touch()
    assert [gpu["processes"] for gpu in host.look()["gpus"]] == [[], []]


@pytest.mark.parametrize(
    ("variables", "on"),
    [
        ({"CUDA_VISIBLE_DEVICES": f"{GTX_1080_TI},{RTX_3060}"}, [True, True]),
        ({"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, [False, True]),
        ({"CUDA_VISIBLE_DEVICES": RTX_3060[:12]}, [True, False]),
        ({"CUDA_VISIBLE_DEVICES": f"{RTX_3060},-1,{GTX_1080_TI}"}, [True, False]),
        ({"CUDA_VISIBLE_DEVICES": f"{RTX_3060},{RTX_3060}"}, [False, False]),
        ({"CUDA_VISIBLE_DEVICES": ""}, [False, False]),
        ({}, [False, False]),
    ],
)
def test_stand_in_reads_visible_devices_as_cuda_does(
    host: Host, stand_in: StandIn, server: Any, variables: dict[str, str], on: list[bool]
) -> None:
    assert stand_in.state.exists()
    pid = server(**variables)
    assert [bool(used) for used in used_by(host.look(), pid)] == on


def test_stand_in_counts_the_fastest_gpu_first_unless_told_otherwise(
    host: Host, stand_in: StandIn, server: Any
) -> None:
    slow_first = [KLOROS["gpus"][1] | {"index": 0}, KLOROS["gpus"][0] | {"index": 1}]
    stand_in.set(gpus=slow_first)
    pid = server(CUDA_VISIBLE_DEVICES="0")
    assert [bool(used) for used in used_by(host.look(), pid)] == [False, True]


def test_stand_in_divides_equally(host: Host, stand_in: StandIn, server: Any) -> None:
    assert stand_in.state.exists()
    pid = server(CUDA_VISIBLE_DEVICES=f"{RTX_3060},{GTX_1080_TI}")
    first, second = used_by(host.look(), pid)
    assert first == second
    assert first is not None
    assert 32 <= first < 64


def test_stand_in_s_other_questions(stand_in: StandIn) -> None:
    assert stand_in.ask("-L") == (
        0,
        f"GPU 0: NVIDIA GeForce RTX 3060 (UUID: {RTX_3060})\n"
        f"GPU 1: NVIDIA GeForce GTX 1080 Ti (UUID: {GTX_1080_TI})\n",
    )
    assert stand_in.ask("--query-gpu=name,memory.total", "--format=csv", "-i", GTX_1080_TI) == (
        0,
        "name, memory.total [MiB]\nNVIDIA GeForce GTX 1080 Ti, 11264 MiB\n",
    )
    assert stand_in.ask("-L", "-i", "GPU-none") == (6, "No devices were found\n")
    rc, output = stand_in.ask("--query-gpu=colour", "--format=csv")
    assert (rc, output.strip()) == (2, 'Field "colour" is not a valid field to query.')
    assert stand_in.ask("--query-gpu=name")[0] == 2
