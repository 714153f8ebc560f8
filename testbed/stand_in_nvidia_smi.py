#!/usr/bin/env python3
"""A stand-in for `nvidia-smi` on a host without a GPU: copied there as /usr/local/bin/nvidia-smi.

It knows

    -L
    -q -x
    --query-gpu=FIELDS --format=csv[,noheader][,nounits]
    --query-compute-apps=FIELDS --format=csv[,noheader][,nounits]

each also with -i INDEX|UUID|BUS_ID, prints what the real tool prints, on the same stream and with
the same exit status. What there is comes from /etc/stand_in_nvidia_smi/state.json (or the file that
STAND_IN_NVIDIA_SMI_STATE names):

    {"fault": null | "mismatch" | "not_loaded" | "no_devices" | "lost",
     "driver": {"version": "550.163.01", "cuda_version": "12.4"},
     "gpus": [{"index": 0, "uuid": "GPU-…", "name": "…", "compute_capability": "8.6",
               "memory_total_mib": 12288, "base_used_mib": 1, "bus_id": "00000000:06:00.0"}]}

A compute_capability of null, or a cuda_version of null, makes the driver one too old to tell.

Memory in use follows the host: each process whose program is named llama-server and whose
CUDA_VISIBLE_DEVICES names GPUs of the state, as CUDA reads it, is reported on those, its resident
memory divided equally over them. With a file no_processes beside the state, none is: as if they all
ran on the CPU. Other users' processes show to root only; the real tool shows them to everyone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, NoReturn
from xml.sax.saxutils import escape

STATE = Path(os.environ.get("STAND_IN_NVIDIA_SMI_STATE", "/etc/stand_in_nvidia_smi/state.json"))
SERVER = "llama-server"
Row = dict[str, Any]

# The field's name to the key of a row, and the unit.
GPU_FIELDS = {
    "index": ("index", ""),
    "uuid": ("uuid", ""),
    "gpu_uuid": ("uuid", ""),
    "name": ("name", ""),
    "gpu_name": ("name", ""),
    "compute_cap": ("compute_capability", ""),
    "memory.total": ("memory_total_mib", "MiB"),
    "memory.used": ("used_mib", "MiB"),
    "memory.free": ("free_mib", "MiB"),
    "pci.bus_id": ("bus_id", ""),
    "gpu_bus_id": ("bus_id", ""),
    "driver_version": ("driver_version", ""),
}
PROCESS_FIELDS = {
    "pid": ("pid", ""),
    "process_name": ("name", ""),
    "name": ("name", ""),
    "gpu_uuid": ("uuid", ""),
    "used_memory": ("used_mib", "MiB"),
    "used_gpu_memory": ("used_mib", "MiB"),
}


def end(message: str, status: int) -> NoReturn:
    """As the real tool ends in error: all on standard output."""
    print(message)
    sys.exit(status)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nvidia-smi", allow_abbrev=False)
    parser.add_argument("-L", "--list-gpus", action="store_true")
    parser.add_argument("-q", "--query", action="store_true")
    parser.add_argument("-x", "--xml-format", action="store_true")
    parser.add_argument("-i", "--id")
    parser.add_argument("--query-gpu")
    parser.add_argument("--query-compute-apps")
    parser.add_argument("--format", default="")
    return parser.parse_args()


def fail_as_told(state: dict[str, Any]) -> None:
    """End as the real tool does with the state's fault."""
    fault = state["fault"]
    if fault == "mismatch":
        library = ".".join(state["driver"]["version"].split(".")[:2])
        end(
            "Failed to initialize NVML: Driver/library version mismatch\n"
            f"NVML library version: {library}",
            18,
        )
    if fault == "not_loaded":
        end(
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make "
            "sure that the latest NVIDIA driver is installed and running.\n",
            9,
        )
    if fault == "no_devices" or not state["gpus"]:
        end("No devices were found", 6)
    if fault == "lost":
        bus_id = state["gpus"][-1]["bus_id"].removeprefix("0000")
        end(
            f"Unable to determine the device handle for GPU{bus_id}: GPU is lost.  Reboot the "
            "system to recover this GPU",
            15,
        )
    if fault is not None:
        sys.exit(f"stand-in: there is no fault {fault!r}")


def visible(process: Path, gpus: list[Row]) -> list[Row]:
    """The GPUs that a process was given, as CUDA reads it.

    By index, then in CUDA's own order unless told otherwise, or by a UUID's beginning. The list
    ends at the first name that is none; with a GPU named twice there is none at all.
    """
    items = (process / "environ").read_bytes().decode(errors="replace").split("\0")
    environment = dict(item.split("=", 1) for item in items if "=" in item)
    names = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    if environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        gpus = sorted(gpus, key=lambda gpu: -float(gpu["compute_capability"] or 0))
    by_uuid = names[0].startswith("GPU-")
    found: list[Row] = []
    for name in names:
        if by_uuid:
            matching = [gpu for gpu in gpus if name and gpu["uuid"].startswith(name)]
        else:
            matching = [gpu for number, gpu in enumerate(gpus) if name == str(number)]
        if len(matching) != 1:
            break
        if matching[0] in found:
            return []
        found += matching
    return found


def resident_mib(process: Path) -> int:
    for line in (process / "status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) // 1024
    return 0


def processes(gpus: list[Row]) -> list[Row]:
    """Each server on each of its GPUs."""
    found: list[Row] = []
    if STATE.with_name("no_processes").exists():
        return found
    for process in sorted(Path("/proc").glob("[1-9]*"), key=lambda path: int(path.name)):
        try:
            program = str((process / "exe").readlink()).removesuffix(" (deleted)")
            if Path(program).name != SERVER:
                continue
            given = visible(process, gpus)
            resident = resident_mib(process)
        except OSError:
            continue  # it has ended, or it is the kernel's, or not ours to look at
        found += [
            {
                "pid": int(process.name),
                "name": program,
                "uuid": gpu["uuid"],
                "used_mib": resident // len(given),
            }
            for gpu in given
        ]
    return found


def gpus_of(state: dict[str, Any]) -> list[Row]:
    """The state's GPUs in the order of their index, with the memory that is in use now."""
    gpus: list[Row] = sorted(state["gpus"], key=lambda gpu: int(gpu["index"]))
    running = processes(gpus)
    for gpu in gpus:
        gpu["driver_version"] = state["driver"]["version"]
        gpu["processes"] = [process for process in running if process["uuid"] == gpu["uuid"]]
        used = gpu["base_used_mib"] + sum(process["used_mib"] for process in gpu["processes"])
        gpu["used_mib"] = min(used, gpu["memory_total_mib"])
        gpu["free_mib"] = gpu["memory_total_mib"] - gpu["used_mib"]
    return gpus


def table(
    rows: list[Row], known: dict[str, tuple[str, str]], fields: list[str], form: list[str]
) -> None:
    for field in fields:
        if field not in known:
            end(f'Field "{field}" is not a valid field to query.\n', 2)
    columns = [known[field] for field in fields]
    if "noheader" not in form:
        print(
            ", ".join(
                f"{field} [{known[field][1]}]" if known[field][1] else field for field in fields
            )
        )
    for row in rows:
        print(
            ", ".join(
                f"{row[key]} {unit}" if unit and "nounits" not in form else str(row[key])
                for key, unit in columns
            )
        )


def xml(state: dict[str, Any], gpus: list[Row]) -> None:
    """The elements that matter, named and nested as the driver's are."""
    print('<?xml version="1.0" ?>')
    print('<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">')
    print("<nvidia_smi_log>")
    print(f"\t<timestamp>{time.ctime()}</timestamp>")
    print(f"\t<driver_version>{state['driver']['version']}</driver_version>")
    if state["driver"]["cuda_version"] is not None:
        print(f"\t<cuda_version>{state['driver']['cuda_version']}</cuda_version>")
    print(f"\t<attached_gpus>{len(gpus)}</attached_gpus>")
    for gpu in gpus:
        print(f'\t<gpu id="{gpu["bus_id"]}">')
        print(f"\t\t<product_name>{escape(gpu['name'])}</product_name>")
        print("\t\t<mig_mode>")
        print("\t\t\t<current_mig>N/A</current_mig>")
        print("\t\t\t<pending_mig>N/A</pending_mig>")
        print("\t\t</mig_mode>")
        print("\t\t<mig_devices>\n\t\t\tNone\n\t\t</mig_devices>")
        print(f"\t\t<uuid>{gpu['uuid']}</uuid>")
        print(f"\t\t<minor_number>{gpu['index']}</minor_number>")
        print(f"\t\t<pci>\n\t\t\t<pci_bus_id>{gpu['bus_id']}</pci_bus_id>\n\t\t</pci>")
        print("\t\t<fb_memory_usage>")
        print(f"\t\t\t<total>{gpu['memory_total_mib']} MiB</total>")
        print("\t\t\t<reserved>0 MiB</reserved>")
        print(f"\t\t\t<used>{gpu['used_mib']} MiB</used>")
        print(f"\t\t\t<free>{gpu['free_mib']} MiB</free>")
        print("\t\t</fb_memory_usage>")
        print("\t\t<processes>")
        for process in gpu["processes"]:
            print("\t\t\t<process_info>")
            print("\t\t\t\t<gpu_instance_id>N/A</gpu_instance_id>")
            print("\t\t\t\t<compute_instance_id>N/A</compute_instance_id>")
            print(f"\t\t\t\t<pid>{process['pid']}</pid>")
            print("\t\t\t\t<type>C</type>")
            print(f"\t\t\t\t<process_name>{escape(process['name'])}</process_name>")
            print(f"\t\t\t\t<used_memory>{process['used_mib']} MiB</used_memory>")
            print("\t\t\t</process_info>")
        print("\t\t</processes>")
        print("\t</gpu>\n")
    print("</nvidia_smi_log>")


def main() -> None:
    asked = arguments()
    state = json.loads(STATE.read_text(encoding="utf-8"))
    fail_as_told(state)
    gpus = gpus_of(state)
    if any(gpu["compute_capability"] is None for gpu in gpus):
        del GPU_FIELDS["compute_cap"]
    if (asked.query_gpu or asked.query_compute_apps) and not asked.format.startswith("csv"):
        end("\"--format=\" switch is missing. Please run 'nvidia-smi -h' for help.", 2)
    if asked.id is not None:
        wanted = asked.id.split(",")
        gpus = [gpu for gpu in gpus if {str(gpu["index"]), gpu["uuid"], gpu["bus_id"]} & {*wanted}]
        if not gpus:
            end("No devices were found", 6)
    form = asked.format.split(",")
    if asked.list_gpus:
        for gpu in gpus:
            print(f"GPU {gpu['index']}: {gpu['name']} (UUID: {gpu['uuid']})")
    elif asked.query_gpu:
        table(gpus, GPU_FIELDS, asked.query_gpu.split(","), form)
    elif asked.query_compute_apps:
        rows = [process for gpu in gpus for process in gpu["processes"]]
        table(rows, PROCESS_FIELDS, asked.query_compute_apps.split(","), form)
    elif asked.query and asked.xml_format:
        xml(state, gpus)
    else:
        sys.exit("stand-in: only -L, -q -x, --query-gpu and --query-compute-apps are there")


if __name__ == "__main__":
    main()
