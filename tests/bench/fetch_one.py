"""One download by kloros-llm in a process of its own; prints its time and memory as JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from ansible_collections.kloros.llm.plugins.module_utils.http_client import HttpClient
from ansible_collections.kloros.llm.plugins.module_utils.model_transfer import Download, transfer
from ansible_collections.kloros.llm.plugins.module_utils.progress import ProgressFile


def fetch(url: str, target: Path, size_bytes: int, sha256: str) -> dict[str, float]:
    """Seconds and MiB; the memory before the transfer is the bare interpreter's with imports."""
    bare_kib = _peak_kib()
    began = time.monotonic()
    download = Download("bench", url, url, size_bytes, sha256, target)
    quiet = ProgressFile(None, "", "bytes")
    received = transfer(HttpClient(), quiet, download, lambda _missing: None)
    if received.sha256 != sha256:
        raise SystemExit(f"wrong bytes came: {received.sha256} instead of {sha256}")
    return {
        "seconds": time.monotonic() - began,
        "bare_mib": bare_kib / 1024,
        "peak_mib": _peak_kib() / 1024,
    }


def _peak_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    url, target, size, sha256 = sys.argv[1:]
    print(json.dumps(fetch(url, Path(target), int(size), sha256)))
