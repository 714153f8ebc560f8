"""What of each GPU's memory and of the host's the planner may give away; all in MiB."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .memory_model import HOST

NEIGHBOURS_STEP_MIB: Final = 256
"""What others use is rounded up to this, so that the plan does not follow every MiB of theirs."""

DEFAULT_RESERVE_MIB: Final = 512
"""Kept free of instances on each GPU where no other reserve is wished: the driver itself, a
display, and what CUDA allocates beyond what llama.cpp reports."""


@dataclass(frozen=True)
class Pool:
    """One memory that instances share: a GPU's own, or the host's.

    `neighbours_mib` is what others were seen to use (rounded up), `reserve_mib` what is wished to
    be kept for them; the larger of the two counts.
    """

    key: str
    index: int | None
    name: str
    total_mib: int
    neighbours_mib: int
    reserve_mib: int
    note: str

    @property
    def budget_mib(self) -> int:
        """What instances may take."""
        return max(0, self.total_mib - max(self.neighbours_mib, self.reserve_mib))

    @property
    def title(self) -> str:
        """What to call it in a sentence."""
        return "the host" if self.index is None else f"GPU {self.index} ({self.name})"


@dataclass(frozen=True)
class Machine:
    """The pools by key, GPUs first and in order, and the pool that each GPU (by UUID) draws from.

    A GPU without memory of its own draws from the host's.
    """

    pools: Mapping[str, Pool]
    gpus: Sequence[Mapping[str, Any]]

    def pool_of(self, uuid: str) -> str:
        """The key of the pool from which a GPU's allocations come."""
        return uuid if uuid in self.pools else HOST

    def has(self, uuid: str) -> bool:
        """Whether the GPU is there and usable."""
        return any(gpu["uuid"] == uuid for gpu in self.gpus)

    def budgets(self) -> dict[str, int]:
        """What instances may take of each pool."""
        return {key: pool.budget_mib for key, pool in self.pools.items()}


def _reserve(gpu: Mapping[str, Any], reserves: Mapping[Any, Any], default_mib: int) -> int:
    wanted = {str(key): value for key, value in reserves.items()}
    value = wanted.get(gpu["uuid"], wanted.get(str(gpu["index"])))
    return default_mib if value is None else int(value)


def _own_mib(
    gpu: Mapping[str, Any], own_pids: frozenset[int], hidden: bool, told_mib: int | None
) -> int | None:
    """What our own instances use of a GPU; None where nobody tells."""
    ours = [item["used_mib"] for item in gpu["processes"] if item["pid"] in own_pids]
    return told_mib if hidden or None in ours else sum(int(mib) for mib in ours)


def _neighbours(
    gpu: Mapping[str, Any], own_pids: frozenset[int], own_mib: int | None
) -> tuple[int, str]:
    """What others use of a GPU, rounded up, and how that is known, as a sentence.

    What nobody is listed for counts as theirs: the driver's own share, and processes of other
    users or containers, which the driver may hide.
    """
    others = [process for process in gpu["processes"] if process["pid"] not in own_pids]
    seen = sum(process["used_mib"] or 0 for process in others)
    if own_mib is not None and gpu["memory_free_mib"] is not None:
        seen = max(seen, gpu["memory_total_mib"] - gpu["memory_free_mib"] - own_mib)
    untold = "" if own_mib is not None else " The driver does not tell what our own instances use."
    if not seen:
        return 0, f"Nothing else is seen to use it.{untold}"
    named = [
        f"{process['name'] or 'process'} ({process['pid']}"
        + (")" if process["used_mib"] is None else f", {process['used_mib']} MiB)")
        for process in others
    ]
    who = f": {', '.join(named[:3])}{', …' if len(named) > 3 else ''}" if named else ""
    rounded = -(-seen // NEIGHBOURS_STEP_MIB) * NEIGHBOURS_STEP_MIB
    return rounded, f"Others use {seen} MiB, counted as {rounded}{who}.{untold}"


def machine(
    gpus: Sequence[Mapping[str, Any]],
    host: Mapping[str, Any],
    *,
    own_pids: Iterable[int],
    own_mib: Mapping[str, int] | None,
    reserves: Mapping[Any, Any],
    default_reserve_mib: int,
) -> Machine:
    """The pools out of `gpu_info`'s list and the host's `memory_mib` and `reserve_mib`."""
    pids = frozenset(int(pid) for pid in own_pids)
    # Our instances run, and yet no process is listed anywhere: a container, or an old driver.
    hidden = bool(pids) and not any(gpu["processes"] for gpu in gpus)
    pools: dict[str, Pool] = {}
    for gpu in sorted(gpus, key=lambda gpu: int(gpu["index"])):
        if gpu["memory_total_mib"] is None:
            continue
        # Of a GPU that the plan before does not name, they use nothing.
        told = None if own_mib is None else own_mib.get(gpu["uuid"], 0)
        own = _own_mib(gpu, pids, hidden, told)
        seen, note = _neighbours(gpu, pids, own)
        reserve = _reserve(gpu, reserves, default_reserve_mib)
        pools[gpu["uuid"]] = Pool(
            key=gpu["uuid"],
            index=int(gpu["index"]),
            name=gpu["name"],
            total_mib=int(gpu["memory_total_mib"]),
            neighbours_mib=seen,
            reserve_mib=reserve,
            note=f"{note} {reserve} MiB are reserved; the larger counts.",
        )
    pools[HOST] = Pool(
        key=HOST,
        index=None,
        name="main memory",
        total_mib=int(host["memory_mib"]),
        neighbours_mib=0,
        reserve_mib=int(host["reserve_mib"]),
        note=f"{host['reserve_mib']} MiB are reserved for all else on the host.",
    )
    return Machine(pools, sorted(gpus, key=lambda gpu: int(gpu["index"])))
