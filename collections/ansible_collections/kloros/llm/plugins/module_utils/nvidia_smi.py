"""What `nvidia-smi` says of a host's NVIDIA GPUs, or why it says nothing; nothing is changed.

Two questions are asked. The comma-separated one has what the XML lacks (index, compute capability)
and cannot be broken by what a process calls itself, so it settles which GPUs there are. The XML
one adds the driver's CUDA version, MIG mode and the processes, joined by UUID.
"""

from __future__ import annotations

import html
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypedDict
from xml.etree import ElementTree

from .host_facts import run
from .nvidia_faults import (
    GPU_ROW,
    SYSFS,
    GpuFaultError,
    Status,
    count,
    kernel_view,
    known_fault,
    no_tool,
    unknown_fault,
)

TOOL_FOLDERS: Final = (
    "/usr/bin",
    "/usr/local/bin",
    "/usr/lib/nvidia/current",  # Debian, where the alternatives are broken
    "/usr/lib/nvidia/bin",
    "/usr/lib/wsl/lib",
    "/usr/local/nvidia/bin",
    "/run/nvidia/bin",
    "/opt/bin",
)
# Without persistence mode the driver sets every GPU up anew for each call: seconds a GPU.
TIMEOUT_S: Final = 60
_KILL_AFTER_S: Final = 2
_GIVE_UP_AFTER_S: Final = 10

# The name comes last, so that a comma in it splits nothing.
FIELDS: Final[tuple[str, ...]] = (
    "index",
    "uuid",
    "compute_cap",
    "memory.total",
    "memory.free",
    "pci.bus_id",
    "driver_version",
    "name",
)
_LATER_FIELD: Final = "compute_cap"  # old drivers (470, say) do not know it
_UNKNOWN_FIELD: Final = f'Field "{_LATER_FIELD}" is not a valid field'
_INFOROM_CORRUPTED: Final = 14  # a warning: everything that was asked for is printed all the same

_UUID: Final = re.compile(r"GPU-[0-9a-fA-F-]+")
_CAPABILITY: Final = re.compile(r"\d+\.\d+")
_MIB: Final = re.compile(r"(\d{1,12})(?: MiB)?")
_PID: Final = re.compile(r"\d{1,12}")

_XML_LIMIT: Final = 16 * 2**20  # characters; eight GPUs with all their clocks take half of one MiB
_XML_START: Final = "<nvidia_smi_log>"
_XML_END: Final = "</nvidia_smi_log>"
_PROCESS_NAME: Final = re.compile(r"(?<=<process_name>).*?(?=</process_name>)", re.DOTALL)
_NOT_IN_XML: Final = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Driver(TypedDict):
    """The driver's version, and the newest CUDA it serves (None: a driver before 410)."""

    version: str
    cuda_version: str | None


class Process(TypedDict):
    """A compute or graphics process that holds memory of a GPU.

    `name` and `used_mib` are None where the driver does not tell, as in a container.
    """

    pid: int
    name: str | None
    used_mib: int | None


class Gpu(TypedDict):
    """A GPU, in the order of the PCI bus.

    `compute_capability` is None where the driver is too old to tell. Memory is None where the GPU
    shares the host's. `mig`: the GPU is partitioned, and programs see its partitions only.
    `processes` is empty too where they are hidden: in a container, and on old drivers.
    """

    index: int
    uuid: str
    name: str
    compute_capability: str | None
    memory_total_mib: int | None
    memory_free_mib: int | None
    bus_id: str
    mig: bool
    processes: list[Process]


class GpuInfo(TypedDict):
    """What was found; `driver` is None and `gpus` empty unless `status` is ok.

    `detail` says in one line what was found, `cure` what to do about it ('' where nothing).
    """

    status: Status
    detail: str
    cure: str
    driver: Driver | None
    gpus: list[Gpu]


def find_tool(folders: Sequence[str] = TOOL_FOLDERS) -> str | None:
    """`nvidia-smi` on PATH, or in one of the folders in which drivers put it."""
    places = [os.environ.get("PATH", os.defpath), *folders]
    return shutil.which("nvidia-smi", path=os.pathsep.join(places))


def _told(text: str | None) -> str | None:
    """A value, or None for what the driver prints in its place: N/A, [N/A], [Not Found] …"""
    text = (text or "").strip()
    return None if text in ("", "N/A") or text.startswith("[") else text


def _mib(text: str | None) -> int | None:
    match = _MIB.fullmatch((text or "").strip())
    return int(match.group(1)) if match else None


def parse_gpus(output: str, fields: Sequence[str] = FIELDS) -> tuple[list[Gpu], str]:
    """The GPUs out of `--query-gpu`'s rows (`fields`, name last), and the driver's version.

    Warnings between the rows are passed over. Raises ValueError, with the row, where one is not
    a whole GPU.
    """
    gpus: list[Gpu] = []
    version = ""
    for line in filter(GPU_ROW.match, output.splitlines()):
        row = dict(zip(fields, line.strip().split(", ", len(fields) - 1), strict=False))
        if len(row) < len(fields) or not _UUID.fullmatch(row["uuid"]):
            raise ValueError(line)
        capability = row.get(_LATER_FIELD, "")
        version = row["driver_version"]
        gpus.append(
            {
                "index": int(row["index"]),
                "uuid": row["uuid"],
                "name": row["name"],
                "compute_capability": capability if _CAPABILITY.fullmatch(capability) else None,
                "memory_total_mib": _mib(row["memory.total"]),
                "memory_free_mib": _mib(row["memory.free"]),
                "bus_id": row["pci.bus_id"],
                "mig": False,
                "processes": [],
            }
        )
    return sorted(gpus, key=lambda gpu: gpu["index"]), version


def parse_log(output: str) -> ElementTree.Element:
    """The XML of `-q -x`. Raises ValueError where it is not whole or beyond all measure.

    What a process calls itself may stand in there as it is, with `<` and control characters: it
    is escaped first. Only the root element is parsed: warnings may surround it, and without the
    document type before it there are no entities to expand and no external files to read.
    """
    if len(output) > _XML_LIMIT:
        raise ValueError(f"{len(output)} characters of XML")
    start, end = output.find(_XML_START), output.rfind(_XML_END)
    if start < 0 or end < start:
        raise ValueError(output)
    text = output[start : end + len(_XML_END)]
    text = _PROCESS_NAME.sub(lambda name: html.escape(html.unescape(name.group())), text)
    text = _NOT_IN_XML.sub("\ufffd", text)
    try:
        return ElementTree.fromstring(text)  # noqa: S314 - bounded, and no document type: see above
    except ElementTree.ParseError as wrong:
        raise ValueError(str(wrong)) from wrong


def _parse_process(element: ElementTree.Element) -> Process | None:
    pid = _told(element.findtext("pid"))
    if pid is None or not _PID.fullmatch(pid):
        return None
    name = _told(element.findtext("process_name"))
    return {
        "pid": int(pid),
        # Browsers append their options to their name: noise, and perhaps not for everyone's eyes.
        "name": None if name is None else re.split(r"\s+-", name)[0],
        "used_mib": _mib(element.findtext("used_memory")),
    }


def add_log(gpus: Sequence[Gpu], log: ElementTree.Element) -> None:
    """Fill in what only the XML has: MIG mode and processes."""
    elements = {(element.findtext("uuid") or "").strip(): element for element in log.iter("gpu")}
    for gpu in gpus:
        element = elements.get(gpu["uuid"])
        if element is None:
            continue
        gpu["mig"] = _told(element.findtext("mig_mode/current_mig")) == "Enabled"
        processes = map(_parse_process, element.iterfind("processes/process_info"))
        gpu["processes"] = [process for process in processes if process is not None]


def _ask(tool: str, arguments: Sequence[str], timeout_s: float) -> tuple[int, str]:
    # A call that hangs in a dead driver cannot be killed, and waiting for its end would hang too:
    # so `timeout` is what is waited for, and in the end killed.
    guarded = ["timeout", "-k", str(_KILL_AFTER_S), str(timeout_s), tool, *arguments]
    return run(guarded, timeout_s=timeout_s + _GIVE_UP_AFTER_S)


def _look(tool: str, sysfs: Path, timeout_s: float) -> tuple[Driver, list[Gpu]]:
    fields = FIELDS

    def query() -> tuple[int, str]:
        wanted = [f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
        return _ask(tool, wanted, timeout_s)

    def check(status: int, output: str) -> None:
        fault = known_fault(status, output, kernel_view(sysfs))
        if fault is not None:
            raise fault

    status, output = query()
    if _UNKNOWN_FIELD in output:
        fields = tuple(field for field in FIELDS if field != _LATER_FIELD)
        status, output = query()
    check(status, output)
    if status not in (0, _INFOROM_CORRUPTED):
        raise unknown_fault("failed", status, output)
    try:
        gpus, version = parse_gpus(output, fields)
    except ValueError as wrong:
        raise unknown_fault("printed half a GPU", status, str(wrong)) from wrong
    if not gpus:
        raise unknown_fault("listed no GPUs", status, output)

    status, output = _ask(tool, ["-q", "-x"], timeout_s)
    try:
        log = parse_log(output)
    except ValueError as wrong:
        check(status, output)
        raise unknown_fault("-q -x printed no readable XML", status, str(wrong)) from wrong
    add_log(gpus, log)
    return {"version": version, "cuda_version": _told(log.findtext("cuda_version"))}, gpus


def gpu_info(
    *,
    folders: Sequence[str] = TOOL_FOLDERS,
    sysfs: Path = SYSFS,
    timeout_s: float = TIMEOUT_S,
) -> GpuInfo:
    """The host's GPUs and driver, or why there are none to list; never raises for that.

    `folders` are looked through after PATH; `timeout_s` holds for each of at most three calls.
    """
    try:
        tool = find_tool(folders)
        if tool is None:
            raise no_tool(kernel_view(sysfs))
        driver, gpus = _look(tool, sysfs, timeout_s)
    except GpuFaultError as fault:
        return {
            "status": fault.status,
            "detail": fault.detail,
            "cure": fault.cure,
            "driver": None,
            "gpus": [],
        }
    names = ", ".join(gpu["name"] for gpu in gpus)
    version = f"{driver['version']} (CUDA {driver['cuda_version'] or 'unknown'})"
    return {
        "status": "ok",
        "detail": f"{count(len(gpus), 'GPU')} on driver {version}: {names}",
        "cure": "",
        "driver": driver,
        "gpus": gpus,
    }
