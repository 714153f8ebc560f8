"""Why a host has no NVIDIA GPU to use, by what `nvidia-smi` prints and by what the kernel sees.

The kernel's own view (loaded modules, the PCI bus) tells a host without a GPU from one whose GPU
has no working driver.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

Status = Literal["ok", "no_tool", "driver_mismatch", "driver_not_loaded", "no_gpus", "failed"]

SYSFS: Final = Path("/sys")
GPU_ROW: Final = re.compile(r"\d{1,4}, ")

_PCI_NVIDIA: Final = "0x10de"
_PCI_DISPLAY: Final = "0x03"  # VGA-compatible and 3D controllers alike
# Of `timeout`: after TERM; after KILL, which GNU's own process does not survive and others' do.
_TIMED_OUT: Final = (124, -9, 137)
_LONGEST_LINE: Final = 300
_KERNEL_LOG: Final = "look for NVRM and Xid in the kernel's log (journalctl -k)"

_LOST: Final = re.compile(
    r"Unable to (?:determine|detect) the device handle|GPU is lost|GPU requires reset"
    r"|\[Unknown Error\]",
    re.IGNORECASE,
)
_MISMATCH: Final = re.compile(r"version mismatch|mismatch in versions", re.IGNORECASE)
_LIBRARY: Final = re.compile(r"NVML library version: ([0-9.]*[0-9])")
_UNREACHABLE: Final = re.compile(
    r"couldn't communicate with (?:the )?NVIDIA driver|driver not loaded", re.IGNORECASE
)


class GpuFaultError(Exception):
    """Why there are no GPUs to list: `detail` says what was found, `cure` what to do about it."""

    def __init__(self, status: Status, detail: str, cure: str) -> None:
        super().__init__(detail)
        self.status: Status = status
        self.detail = detail
        self.cure = cure


@dataclass(frozen=True)
class KernelView:
    """NVIDIA hardware as the kernel sees it, with no driver's help.

    `controllers`: PCI address to the kernel driver that holds it (None: none does).
    `module`: the version of the loaded module nvidia ('' where it does not tell, None: not loaded).
    """

    controllers: Mapping[str, str | None]
    module: str | None
    nouveau: bool

    @property
    def bus(self) -> str:
        """The controllers, as a part of a sentence."""
        if not self.controllers:
            return "the PCI bus shows no NVIDIA GPU"
        held = ", ".join(
            f"{address} held by {driver or 'no driver'}"
            for address, driver in self.controllers.items()
        )
        return f"the PCI bus shows {count(len(self.controllers), 'NVIDIA GPU')} ({held})"

    @property
    def modules(self) -> str:
        """The modules, as a part of a sentence."""
        if self.module is None:
            nouveau = ", nouveau is" if self.nouveau else ""
            return f"the kernel module nvidia is not loaded{nouveau}"
        return f"the kernel module nvidia {self.module or '(of unknown version)'} is loaded"


def count(number: int, noun: str) -> str:
    """The number and the noun, in its plural where that is due."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _line_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def kernel_view(sysfs: Path = SYSFS) -> KernelView:
    """The PCI bus and the loaded modules, out of sysfs."""
    controllers: dict[str, str | None] = {}
    for device in sorted((sysfs / "bus/pci/devices").glob("*")):
        kind = _line_of(device / "class") or ""
        if _line_of(device / "vendor") == _PCI_NVIDIA and kind.startswith(_PCI_DISPLAY):
            driver = device / "driver"
            controllers[device.name] = driver.resolve().name if driver.exists() else None
    module = sysfs / "module/nvidia"
    return KernelView(
        controllers=controllers,
        module=(_line_of(module / "version") or "") if module.is_dir() else None,
        nouveau=(sysfs / "module/nouveau").is_dir(),
    )


def no_tool(view: KernelView) -> GpuFaultError:
    """There is no `nvidia-smi`."""
    if view.module is not None:
        cure = (
            "Install nvidia-smi in the version of the loaded module "
            "(Debian: package nvidia-smi; it is part of the driver)."
        )
    elif view.controllers:
        cure = (
            "Install NVIDIA's driver with nvidia-smi (Debian: packages nvidia-driver and "
            "nvidia-smi of component non-free), which also keeps nouveau from loading, and "
            "reboot. This project installs no driver."
        )
    else:
        cure = (
            "Build for the CPU, or give the host a GPU: fit one, or pass one through to the "
            "virtual machine or container."
        )
    detail = f"nvidia-smi is not on this host; {view.modules}; {view.bus}"
    return GpuFaultError("no_tool", detail, cure)


def _not_loaded(view: KernelView) -> GpuFaultError:
    if view.module is not None:
        cure = (
            f"The module is there and does not answer: {_KERNEL_LOG}, see that /dev/nvidiactl "
            "and /dev/nvidia0 exist (nvidia-modprobe makes them) and that a container is given "
            "them, then reboot."
        )
    elif not view.controllers:
        cure = (
            "The driver is installed and there is no GPU: fit one or pass one through, or build "
            "for the CPU."
        )
    elif view.nouveau:
        cure = (
            "Keep nouveau from loading (a blacklist in /etc/modprobe.d, then update-initramfs -u; "
            "the driver's packages bring it) and reboot."
        )
    else:
        cure = (
            "Load it with modprobe nvidia. If there is no such module, build it for the running "
            "kernel (dkms status; the kernel's headers must be installed); if its key is "
            "rejected, sign it or turn Secure Boot off."
        )
    detail = f"nvidia-smi does not reach the driver: {view.modules}; {view.bus}"
    return GpuFaultError("driver_not_loaded", detail, cure)


def _mismatch(output: str, view: KernelView) -> GpuFaultError:
    library = _LIBRARY.search(output)
    version = library.group(1) if library else "of another version"
    return GpuFaultError(
        "driver_mismatch",
        f"Driver/library version mismatch: {view.modules}, the libraries are {version}",
        "The driver was updated while its module was loaded: reboot, or stop everything that uses "
        "a GPU and reload the modules (modprobe -r nvidia_uvm nvidia_drm nvidia_modeset nvidia, "
        "then modprobe nvidia).",
    )


def _no_gpus(view: KernelView) -> GpuFaultError:
    if view.controllers:
        cure = (
            f"The driver refuses the GPU: {_KERNEL_LOG}. Usual causes are a GPU too old for this "
            "driver or for its open kernel modules (which start with Turing), a missing power "
            "cable, or vfio-pci holding it."
        )
    else:
        cure = "Fit a GPU or pass one through to the virtual machine, or build for the CPU."
    detail = f"the driver runs and finds no GPU: {view.modules}; {view.bus}"
    return GpuFaultError("no_gpus", detail, cure)


def _lines(output: str) -> list[str]:
    return [line.strip()[:_LONGEST_LINE] for line in output.splitlines() if line.strip()]


def known_fault(status: int, output: str, view: KernelView) -> GpuFaultError | None:
    """What is wrong, by what `nvidia-smi` prints: its exit statuses are not all documented."""
    lines = _lines(output)
    if status in _TIMED_OUT:
        return GpuFaultError(
            "failed",
            "nvidia-smi gave no answer in time",
            f"A GPU or its driver hangs: {_KERNEL_LOG}, and reboot.",
        )
    for line in lines:
        if _LOST.search(line):
            return GpuFaultError(
                "failed",
                line,
                f"A GPU has stopped answering: {_KERNEL_LOG}, reboot, and if it comes back check "
                "its power, cooling and seat.",
            )
    for line in lines:
        found = None if GPU_ROW.match(line) else _said(line, output, view)
        if found is not None:
            return found
    return None


def _said(line: str, output: str, view: KernelView) -> GpuFaultError | None:
    """The fault that one line names."""
    if _MISMATCH.search(line):
        return _mismatch(output, view)
    if _UNREACHABLE.search(line):
        return _not_loaded(view)
    if "No devices were found" in line:
        return _no_gpus(view)
    cure = ""
    if "Insufficient Permissions" in line:
        cure = (
            "Ask as root (become: true), or let the user read and write /dev/nvidia*; in a "
            "container, give it those devices."
        )
    elif "couldn't find libnvidia-ml" in line:
        cure = (
            "The driver's libraries are missing: install them in the version of its kernel "
            "module (Debian: libnvidia-ml1), or run ldconfig where they are there."
        )
    elif "Failed to initialize NVML" in line:
        cure = (
            f"{_KERNEL_LOG[0].upper()}{_KERNEL_LOG[1:]}. In a container that had its GPU before, "
            "restart the container: a reload of systemd takes its devices away."
        )
    return GpuFaultError("failed", line, cure) if cure else None


def unknown_fault(what: str, status: int, output: str) -> GpuFaultError:
    """`nvidia-smi` did what nobody has foreseen; its last line may tell."""
    lines = _lines(output) or ["no output"]
    return GpuFaultError(
        "failed",
        f"nvidia-smi {what} (exit status {status}): {lines[-1]}",
        f"Run nvidia-smi on the host and {_KERNEL_LOG}.",
    )
