"""The GPUs that an instance asks for, found among those that the host has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict


class ChosenGpu(TypedDict):
    """A GPU that an instance is pinned to; `memory_total_mib` is None where it is the host's."""

    index: int
    uuid: str
    name: str
    compute_capability: str | None
    memory_total_mib: int | None


def choose_gpus(wanted: Sequence[int | str], there: Sequence[Mapping[str, Any]]) -> list[ChosenGpu]:
    """The GPUs of a wish (indices in PCI bus order, or UUIDs), in its order.

    Raises ValueError for one that the host does not have, or that is named twice.
    """
    chosen: list[ChosenGpu] = []
    for wish in wanted:
        found = [gpu for gpu in there if wish in (gpu["index"], gpu["uuid"])]
        if not found:
            has = ", ".join(f"{gpu['index']} ({gpu['name']}, {gpu['uuid']})" for gpu in there)
            raise ValueError(f"there is no GPU {wish}; the host has: {has or 'none'}")
        (gpu,) = found
        if gpu.get("mig"):
            raise ValueError(f"GPU {wish} is divided (MIG is on), which is not supported")
        if any(gpu["uuid"] == other["uuid"] for other in chosen):
            raise ValueError(f"GPU {wish} is named twice")
        chosen.append(
            {
                "index": gpu["index"],
                "uuid": gpu["uuid"],
                "name": gpu["name"],
                "compute_capability": gpu["compute_capability"],
                "memory_total_mib": gpu["memory_total_mib"],
            }
        )
    return chosen
