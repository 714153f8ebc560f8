"""What an instance needs in MiB, part by part and device by device, in one configuration.

Weights, KV cache and compute buffers come from the memory model, corrected by what the engine's
dry run measured; the rest is added here:

* the CUDA context, on every GPU that the instance is pinned to;
* the projector, on the first GPU (`clip.cpp` takes the first that CUDA shows);
* the draft model, which llama-server v0.5.0-dev gives the instance's own devices, split and
  context, but its own KV type (f16) and all its layers (`common_base_params_to_speculative()`);
* LoRA adapters, which lie where the weights lie that they change.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from .memory_model import HOST, MIB, DeviceMemory, MemoryModelError, RunConfig
from .vram_budget import Machine
from .vram_thumbnail import MemoryFunction, Thumbnail, thumbnail_of

CUDA_CONTEXT_MIB: Final = 512
"""What a process takes of each GPU beside llama.cpp's buffers: the CUDA context with its kernels,
cuBLAS' workspace, the pool for converted matrices. 300 to 600 MiB were seen; it depends on the GPU
and the driver, and a measured number goes before this one."""

PROJECTOR_COMPUTE_MIB: Final = 512
"""A vision or audio projector's compute buffer where it is not known; it grows with the image."""

DRAFT_TOKENS: Final = 3
"""Tokens that llama-server v0.5.0-dev lets a draft model guess at once (`--spec-draft-n-max`)."""

PARTS: Final = (
    "weights_mib",
    "kv_mib",
    "compute_mib",
    "cuda_context_mib",
    "projector_mib",
    "draft_mib",
)
CORRECTED_PARTS: Final = ("weights_mib", "kv_mib", "compute_mib", "projector_mib", "draft_mib")

# The words that llama.cpp's --flash-attn takes beside "auto" (`is_truthy()`, `is_falsey()`).
FLASH_ATTENTION: Final[Mapping[str, Literal["on", "off"]]] = {
    **dict.fromkeys(("on", "enabled", "true", "1"), "on"),
    **dict.fromkeys(("off", "disabled", "false", "0"), "off"),
}


@dataclass(frozen=True)
class Setting:
    """One way to run an instance: tokens a slot, the type of the KV cache, layers on the GPUs (the
    output counts as one), layers whose experts stay on the CPU, and the GPUs' shares."""

    context_tokens: int
    kv_cache: str
    gpu_layers: int
    cpu_moe_layers: int
    split: tuple[float, ...]


@dataclass(frozen=True)
class DeviceNeed:
    """What an instance takes on one device; `pool` is the memory that it comes from."""

    device: str
    uuid: str | None
    pool: str
    parts: Mapping[str, int]
    approximate: bool

    @property
    def total_mib(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Surroundings:
    """What is the same for all instances of one plan."""

    machine: Machine
    models: Mapping[str, Mapping[str, Any]]
    corrections: Mapping[str, Mapping[str, Mapping[str, float]]]
    cuda_context_mib: Mapping[str, int]
    memory: MemoryFunction
    thumbnails: dict[str, Thumbnail] = field(default_factory=dict)

    def thumbnail(self, key: str, facts: Mapping[str, Any]) -> Thumbnail:
        """A model's, asked for once for all what-ifs. Raises ImpossibleError without a shape."""
        if key not in self.thumbnails:
            shape = facts.get("shape")
            if shape is None:
                detail = facts.get("shape_detail")
                raise ImpossibleError(
                    f"{key}: {detail}" if detail else f"the header of {key} is not known"
                )
            self.thumbnails[key] = thumbnail_of(shape, self.memory)
        return self.thumbnails[key]


def _whole_mib(row: DeviceMemory | None) -> dict[str, int]:
    return {
        "weights_mib": row.weights_bytes // MIB if row else 0,
        "kv_mib": row.kv_bytes // MIB if row else 0,
        "compute_mib": row.compute_bytes // MIB if row else 0,
    }


class ImpossibleError(Exception):
    """The instance cannot be planned at all; the text says what was found."""


def context_steps(least: int, most: int) -> list[int]:
    """The contexts that are tried, ascending: steps of 1024 tokens, of 256 below 4096."""
    steps = {least, most}
    steps.update(range(-(-least // 1024) * 1024, most, 1024))
    steps.update(range(-(-least // 256) * 256, min(most, 4096), 256))
    return sorted(steps)


class Instance:
    """An instance's wish, with everything needed to tell what a configuration of it takes.

    `scale` is the size of the model's weights in proportion to what they are: for what-ifs about
    another quantisation. Raises ImpossibleError.
    """

    def __init__(
        self, wish: Mapping[str, Any], around: Surroundings, *, scale: float = 1.0
    ) -> None:
        self.wish = wish
        self.around = around
        self.scale = scale
        self.name = str(wish["name"])
        model = around.models.get(wish["model"])
        if model is None:
            raise ImpossibleError(f"nothing is known of the model {wish['model']}")
        self.model = model
        self.thumbnail = around.thumbnail(str(wish["model"]), model)
        self.shape = self.thumbnail.shape
        self.gpus = [str(uuid) for uuid in wish["gpus"]]
        absent = [uuid for uuid in self.gpus if not around.machine.has(uuid)]
        if absent:
            there = ", ".join(f"{gpu['index']} ({gpu['name']})" for gpu in around.machine.gpus)
            raise ImpossibleError(
                f"{', '.join(absent)} is not there or not usable; there is: {there or 'no GPU'}"
            )
        self.devices = tuple(f"CUDA{index}" for index in range(len(self.gpus)))
        self.pools = [around.machine.pool_of(uuid) for uuid in self.gpus]
        self.slots = int(wish["slots"])
        self.split_mode = str(wish.get("split_mode") or "layer")
        self.main_gpu = int(wish.get("main_gpu") or 0)
        self.all_layers = self.shape.layer_count + 1
        self.notes: list[str] = []
        self.contexts = self._contexts()
        self.kv_types = self._kv_types()
        self.steps = self._steps()
        self.companions: Mapping[str, Any] = model.get("companions") or {}
        self.draft = self._draft()
        self.in_full = False
        self.refusal = ""
        self.smallest_uses: Iterable[Mapping[str, int]] | None = None  # kept by the ladder
        self._measured: dict[Setting, tuple[DeviceNeed, ...] | MemoryModelError] = {}
        self._beyond: dict[str, int] = {}
        self._needs: dict[Setting, tuple[DeviceNeed, ...] | MemoryModelError] = {}

    def with_changes(self, changes: Mapping[str, Any], *, scale: float | None = None) -> Instance:
        """The same instance with another wish."""
        return Instance(
            {**self.wish, **changes}, self.around, scale=self.scale if scale is None else scale
        )

    def _contexts(self) -> list[int]:
        context = self.wish["context"]
        want = int(context["want"])
        least = min(int(context.get("min") or want), want)
        trained = self.shape.context_trained
        if 0 < trained < want and not self.wish.get("context_extended"):
            self.notes.append(
                f"{want} tokens a slot were wanted; the model was trained for {trained}, and is "
                "given no more."
            )
            want, least = trained, min(least, trained)
        return context_steps(least, want)

    def _kv_types(self) -> list[str]:
        types = [str(name) for name in self.wish["kv_cache"]]
        if self.flash_attention == "off":
            whole = [name for name in types if name in ("f32", "f16", "bf16")]
            if len(whole) < len(types):
                self.notes.append(
                    "Without flash attention the KV cache cannot be quantised: "
                    f"{', '.join(name for name in types if name not in whole)} is left out."
                )
            types = whole
        if not types:
            raise ImpossibleError(
                "all wished types of the KV cache are quantised, which llama.cpp cannot do "
                "without flash attention"
            )
        return types

    def _steps(self) -> list[tuple[int, int]]:
        """Pairs (layers on the GPUs, layers whose experts are on the CPU), best first.

        Of a model with experts, these go first. They free the same memory at less work for the
        CPU: of E bytes of experts only the k of n that a token uses are read, while a whole layer
        would add its dense weights and its KV cache, all of which are read for every token.
        """
        if not self.gpus:
            return [(0, 0)]
        cpu_moe, forced = self.wish.get("cpu_moe"), self.wish.get("gpu_layers")
        if forced is not None:
            return [(min(int(forced), self.all_layers), int(cpu_moe or 0))]
        first = (self.all_layers, int(cpu_moe or 0))
        if self.wish.get("offload") != "auto":
            return [first]
        layers = self.shape.layer_count
        if cpu_moe is None and self.shape.has_experts:
            steps = [(self.all_layers, number) for number in range(layers + 1)]
            return steps + [(number, layers) for number in range(layers, -1, -1)]
        return [(number, first[1]) for number in range(self.all_layers, -1, -1)]

    def _draft(self) -> Thumbnail | None:
        name = self.wish.get("draft_model")
        if name:
            if name not in self.around.models:
                raise ImpossibleError(f"nothing is known of the draft model {name}")
            return self.around.thumbnail(str(name), self.around.models[name])
        own = self.companions.get("draft")
        if own is None:
            return None
        return self.around.thumbnail(f"the draft model of {self.wish['model']}", {"shape": own})

    @property
    def splits_layers(self) -> bool:
        """Whether the planner decides how many layers each GPU holds."""
        modes = ("layer", "row")
        return len(self.gpus) > 1 and self.split_mode in modes and not self.wished_split

    @property
    def guesses_split(self) -> bool:
        """Whether the split is of a kind that the memory model does not know."""
        return len(self.gpus) > 1 and self.split_mode in ("row", "tensor")

    @property
    def wished_split(self) -> tuple[float, ...]:
        """The shares in the wish."""
        return tuple(float(share) for share in self.wish.get("tensor_split") or ())

    @property
    def flash_attention(self) -> Literal["auto", "on", "off"]:
        """As llama.cpp reads the wish."""
        wished = self.wish.get("flash_attention")
        return FLASH_ATTENTION.get(str(wished).lower(), "auto")

    def needs(self, setting: Setting) -> tuple[DeviceNeed, ...]:
        """Each device's need, the GPUs first and in order, Host last.

        Raises MemoryModelError for a configuration that llama.cpp refuses or nobody can model.
        """
        found = self._measured.get(setting) or self._needs.get(setting)
        if found is None:
            found = self._needs[setting] = self._tried(setting, in_full=self.in_full)
        if isinstance(found, MemoryModelError):
            raise found
        return found

    def _tried(
        self, setting: Setting, *, in_full: bool
    ) -> tuple[DeviceNeed, ...] | MemoryModelError:
        try:
            return self._compute(setting, in_full=in_full)
        except MemoryModelError as problem:
            return problem

    def confirmed(self, setting: Setting) -> bool:
        """Ask the memory model in full about a setting that was chosen by its thumbnail.

        False if it needs more than that said, which the thumbnail's further answers then respect.
        """
        if setting in self._measured or self.in_full:
            return True
        thought = self.needs(setting)
        found = self._measured[setting] = self._tried(setting, in_full=True)
        if isinstance(found, MemoryModelError):
            self.smallest_uses = None
            return False
        beyond = {
            need.device: need.total_mib - before.total_mib
            for before, need in zip(thought, found, strict=True)
            if need.total_mib > before.total_mib
        }
        if beyond:
            for device, mib in beyond.items():
                self._beyond[device] = self._beyond.get(device, 0) + mib
            self._needs = {}
            self.smallest_uses = None
        return not beyond

    def needs_or_none(self, setting: Setting) -> tuple[DeviceNeed, ...] | None:
        """The same; None for a configuration that is not possible, `refusal` then says why."""
        try:
            return self.needs(setting)
        except MemoryModelError as problem:
            self.refusal = str(problem)
            return None

    def usage(self, setting: Setting) -> dict[str, int] | None:
        """MiB a pool; None for a configuration that is not possible."""
        needs = self.needs_or_none(setting)
        if needs is None:
            return None
        used: dict[str, int] = {}
        for need in needs:
            used[need.pool] = used.get(need.pool, 0) + need.total_mib
        return used

    def config(self, setting: Setting) -> RunConfig:
        """The configuration as the memory model takes it."""
        embeddings = bool(self.wish.get("embeddings") or self.wish.get("rerank"))
        # As `instance_environment` tells the server.
        batch, ubatch = (setting.context_tokens,) * 2 if embeddings else (2048, 512)
        return RunConfig(
            context_tokens=setting.context_tokens,
            slots=self.slots,
            cache_type_k=setting.kv_cache,
            cache_type_v=setting.kv_cache,
            devices=self.devices,
            gpu_layers=setting.gpu_layers,
            tensor_split=setting.split,
            split_mode="none" if self.split_mode == "none" else "layer",
            main_gpu=self.main_gpu,
            cpu_moe_layers=setting.cpu_moe_layers,
            flash_attention=self.flash_attention,
            batch=int(self.wish.get("batch") or batch),
            ubatch=int(self.wish.get("ubatch") or ubatch),
            embeddings=embeddings,
            pooling="rank" if self.wish.get("rerank") else "unset",
            draft_tokens=DRAFT_TOKENS if self.draft else 0,
        )

    def _memory(
        self, thumbnail: Thumbnail, config: RunConfig, *, in_full: bool
    ) -> dict[str, DeviceMemory]:
        """The memory model's answer by device.

        Split by row, the matrices are cut across the devices, and all else lies as it does split
        by layer. Split by tensor, each device holds its share of the weights and of the KV cache;
        its compute buffer is taken to be a lone device's. Neither has been measured.
        """

        def ask(config: RunConfig) -> Sequence[DeviceMemory]:
            return thumbnail.whole(config) if in_full else thumbnail.rows(config)

        guess = self.guesses_split
        if not guess or self.split_mode == "row":
            return {
                row.device: replace(row, approximate=row.approximate or guess)
                for row in ask(config)
            }
        one, host = ask(replace(config, devices=config.devices[:1], tensor_split=()))
        shares = config.tensor_split
        cut = {
            device: DeviceMemory(
                device=device,
                weights_bytes=math.ceil(one.weights_bytes * share / sum(shares)),
                kv_bytes=math.ceil(one.kv_bytes * share / sum(shares)),
                compute_bytes=one.compute_bytes,
                approximate=True,
            )
            for device, share in zip(config.devices, shares, strict=True)
        }
        return {**cut, HOST: host}

    def _compute(self, setting: Setting, *, in_full: bool) -> tuple[DeviceNeed, ...]:
        config = self.config(setting)
        rows = self._memory(self.thumbnail, config, in_full=in_full)
        draft = self._draft_bytes(config, in_full=in_full)
        lora_bytes = float(self.companions.get("lora_bytes") or 0)
        lora_bytes += float(self.wish.get("lora_bytes") or 0)
        corrections = self.around.corrections.get(self.name, {})
        needs = []
        for position, device in enumerate((*self.devices, HOST)):
            uuid = self.gpus[position] if position < len(self.gpus) else None
            row = rows.get(device)
            sizes = dict.fromkeys(PARTS, 0.0)
            if row is not None:
                lora = lora_bytes * self._changed_share(device, rows)
                sizes["weights_mib"] = (row.weights_bytes * self.scale + lora) / MIB
                sizes["kv_mib"] = row.kv_bytes / MIB
                sizes["compute_mib"] = row.compute_bytes / MIB
            sizes["draft_mib"] = draft.get(device, 0) / MIB
            if self._holds_projector(device):
                sizes["projector_mib"] = self._projector_mib()
            for part in CORRECTED_PARTS:
                correction = float(corrections.get(device, {}).get(part, 0))
                sizes[part] = max(0.0, sizes[part] + correction)
            if not in_full:
                sizes["compute_mib"] += self._beyond.get(device, 0)
            if uuid is not None:
                sizes["cuda_context_mib"] = self.around.cuda_context_mib.get(uuid, CUDA_CONTEXT_MIB)
            needs.append(
                DeviceNeed(
                    device=device,
                    uuid=uuid,
                    pool=HOST if uuid is None else self.pools[position],
                    parts={part: math.ceil(size) for part, size in sizes.items()},
                    approximate=row is not None and row.approximate,
                )
            )
        return tuple(needs)

    def _changed_share(self, device: str, rows: Mapping[str, DeviceMemory]) -> float:
        """The device's share of the weights that adapters change, which its input is not."""
        input_bytes = sum(tensor.host_bytes for tensor in self.shape.input)
        changed = {
            name: max(0, row.weights_bytes - (input_bytes if name == HOST else 0))
            for name, row in rows.items()
        }
        return changed[device] / (sum(changed.values()) or 1)

    def _draft_bytes(self, config: RunConfig, *, in_full: bool) -> dict[str, int]:
        """Bytes a device that the draft model takes, in all."""
        rows = self._draft_rows(config, in_full=in_full)
        return {device: row.total_bytes for device, row in rows.items()}

    def _draft_rows(self, config: RunConfig, *, in_full: bool) -> dict[str, DeviceMemory]:
        if self.draft is None:
            return {}
        own = replace(
            config,
            cache_type_k="f16",
            cache_type_v="f16",
            gpu_layers=self.draft.shape.layer_count + 1 if config.devices else 0,
            cpu_moe_layers=0,
            embeddings=False,
            pooling="unset",
            draft_tokens=0,
        )
        return self._memory(self.draft, own, in_full=in_full)

    def predicted(self, setting: Setting) -> list[dict[str, Any]]:
        """As an engine's dry run tells it, to be compared: whole MiB, nothing corrected, and
        without what the engine does not tell (the CUDA context, adapters)."""
        config = self.config(setting)
        rows = {row.device: row for row in self.thumbnail.whole(config)}
        draft = self._draft_rows(config, in_full=True)
        return [
            {
                "device": device,
                **_whole_mib(rows.get(device)),
                "draft_mib": sum(_whole_mib(draft.get(device)).values()),
                "projector_mib": (
                    math.ceil(self._projector_mib()) if self._holds_projector(device) else 0
                ),
            }
            for device in (*self.devices, HOST)
        ]

    def _holds_projector(self, device: str) -> bool:
        if not self.companions.get("projector"):
            return False
        on_gpu = self.gpus and self.wish.get("projector_on_gpu", True)
        return device == ("CUDA0" if on_gpu else HOST)

    def _projector_mib(self) -> float:
        projector = self.companions["projector"]
        compute = projector.get("compute_bytes")
        compute_mib = PROJECTOR_COMPUTE_MIB if compute is None else compute / MIB
        return float(projector["bytes"]) / MIB + compute_mib
