"""The answer of `modelctl fit`: numbers a device, the verdict, and what is to be said beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.memory_model import RunConfig
from ..core.model_shape import ModelShape
from .fit_devices import Device
from .lookup import Place


@dataclass(frozen=True)
class Need:
    """What one device would have to hold, in whole MiB.

    `approximate`: the formulas only estimate this model; the engine's word never is.
    """

    device: Device
    weights_mib: int
    kv_mib: int
    compute_mib: int
    approximate: bool = field(default=False, compare=False)

    @property
    def total_mib(self) -> int:
        return self.weights_mib + self.kv_mib + self.compute_mib + self.device.overhead_mib

    @property
    def fits(self) -> bool | None:
        """None where nobody knows what is free."""
        free = self.device.free_mib
        return None if free is None else self.total_mib <= free

    def to_data(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.device.name,
            "title": self.device.title,
            "uuid": self.device.uuid,
            "weights_mib": self.weights_mib,
            "kv_mib": self.kv_mib,
            "compute_mib": self.compute_mib,
            "overhead_mib": self.device.overhead_mib,
            "total_mib": self.total_mib,
            "memory_mib": self.device.memory_mib,
            "free_mib": self.device.free_mib,
            "fits": self.fits,
            "approximate": self.approximate,
        }


@dataclass(frozen=True)
class Engine:
    """The engine's word: `needs`; or, where that is None, why there is none."""

    server: Path
    needs: tuple[Need, ...] | None
    error: str | None = None
    not_covered: tuple[str, ...] = ()

    def to_data(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "server": str(self.server),
            "error": self.error,
            "not_covered": list(self.not_covered),
        }


@dataclass(frozen=True)
class Fit:
    """What was asked, and every answer; one of `formulas` and the engine's `needs` is there.

    `formula_error` is why there are no `formulas`. `ways_out` are sentences.
    """

    place: Place
    size_bytes: int | None
    shape: ModelShape
    config: RunConfig
    formulas: tuple[Need, ...] | None
    formula_error: str | None
    engine: Engine | None
    ways_out: tuple[str, ...] = ()

    @property
    def by_engine(self) -> bool:
        return self.engine is not None and self.engine.needs is not None

    @property
    def needs(self) -> tuple[Need, ...]:
        """What counts: the engine's word, else the formulas'."""
        return (self.engine.needs if self.engine else None) or self.formulas or ()

    @property
    def fits(self) -> bool | None:
        """None where it depends on what nobody knows."""
        verdicts = [need.fits for need in self.needs]
        if False in verdicts:
            return False
        return None if None in verdicts else True

    @property
    def notes(self) -> list[str]:
        """Sentences on what the numbers are worth."""
        notes = []
        if self.engine and self.engine.error:
            notes.append(
                f"{self.engine.server} gave no answer, so these are the formulas: "
                f"{self.engine.error}"
            )
        if any(need.approximate for need in self.needs):
            notes.append(
                f"the formulas only estimate a model such as this ({self.shape.architecture}); the "
                "engine would know"
            )
        if self.engine:
            notes += [f"not counted: {text}" for text in self.engine.not_covered]
        if self.formula_error:
            notes.append(f"the formulas know nothing of this: {self.formula_error}")
        found = self.place.found
        for file in found.version.files if found else ():
            if file.role != "model":
                notes.append(f"not counted: {file.file}, which belongs to the model ({file.role})")
        trained = self.shape.context_trained
        if trained and self.config.context_tokens > trained:
            notes.append(
                f"the model was trained for {trained} tokens; more need RoPE scaling, and it gets "
                "worse"
            )
        return notes

    def to_data(self) -> dict[str, Any]:
        """As JSON."""
        config, shape = self.config, self.shape
        return {
            "fits": self.fits,
            "devices": [need.to_data() for need in self.needs],
            "by": "engine" if self.by_engine else "formulas",
            "formulas": [need.to_data() for need in self.formulas] if self.formulas else None,
            "engine": self.engine.to_data() if self.engine else None,
            "model": {
                "name": self.place.name,
                "place": str(self.place),
                "architecture": shape.architecture,
                "context_trained": shape.context_trained,
                "size_bytes": self.size_bytes,
            },
            "settings": {
                "context_tokens": config.context_tokens,
                "parallel": config.slots,
                "kv_cache": config.cache_type_k,
                "gpu_layers": config.gpu_layers,
                "cpu_moe_layers": config.cpu_moe_layers,
            },
            "ways_out": list(self.ways_out),
            "notes": self.notes,
        }
