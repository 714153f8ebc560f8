"""What a model's files say of it: read once, kept by path, size and time.

Digests come from the store's record. A file without one is not read whole for it: what stands in
for its digest is that of its header and size.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ...core.gguf_bytes import FileBytes
from ...core.gguf_files import GgufModel, read_model_file
from ...core.gguf_header import GgufHeader, SkippedArray
from ...core.gguf_reader import GgufError, Limits, read_header
from ...core.gguf_types import file_type_name
from ...core.model_files import FileRecord, Record, read_record
from ..config import Model
from ..ollama_api.go_values import human_number, shortest_float32
from .layers import ADAPTER, MODEL, PROJECTOR, Layer

_HIDDEN: Final = ("general.name", "tokenizer.chat_template")
_MIB: Final = 1 << 20
# A vocabulary of a million, which `verbose` asks for; its owner's file is trusted with the memory.
_ALL: Final = Limits(
    array_values=4_000_000,
    array_strings=4_000_000,
    texts_bytes=64 * _MIB,
    values=16_000_000,
)


@dataclass(frozen=True)
class Tensor:
    """`shape` is in GGUF's order, the innermost dimension first."""

    name: str
    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelFacts:
    """What `show`, `tags` and the engines' callers want to know of a model.

    `layers` are its files, which lie at `paths`: the shards in order, then the projector's;
    `adapters` are those that its instances load with it. `model_info` and `projector_info` are
    the metadata, arrays as None. `problem` says why nothing could be read.
    """

    layers: tuple[Layer, ...] = ()
    paths: tuple[Path, ...] = ()
    family: str = ""
    parameter_size: str = ""
    quantization_level: str = ""
    context_length: int = 0
    embedding_length: int = 0
    chat_template: str = ""
    embeds: bool = False
    sees: bool = False
    hears: bool = False
    model_info: Mapping[str, Any] = field(default_factory=dict)
    projector_info: Mapping[str, Any] = field(default_factory=dict)
    tensors: tuple[Tensor, ...] = ()
    adapters: tuple[tuple[Layer, Path], ...] = ()
    modified_ns: int = 0
    problem: str = ""

    @property
    def families(self) -> tuple[str, ...]:
        """As Ollama lists them."""
        return (self.family,) if self.family else ()

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(layer.size_bytes for layer in self.layers)


def read_facts(model: Model) -> ModelFacts:
    """Read the headers. What goes wrong is told in `problem`; nothing is raised."""
    try:
        return _read(model)
    except (OSError, GgufError) as error:
        return ModelFacts(problem=str(error))


def read_all_info(model: Model) -> dict[str, Any]:
    """`model_info` with its arrays, for `verbose`. Raises OSError, GgufError."""
    return _info(read_model_file(model.path, _ALL), arrays=True)


def _read(model: Model) -> ModelFacts:
    state = model.path.stat()
    gguf = read_model_file(model.path)
    record = _record(model.path)
    header = gguf.header
    architecture = _text(header, "general.architecture")
    projector = read_model_file(model.mmproj) if model.mmproj else None
    layers = _layers(MODEL, gguf, record)
    shards = gguf.shards
    if projector:
        layers += _layers(PROJECTOR, projector, record)
        shards += projector.shards
    return ModelFacts(
        layers=layers,
        paths=tuple(Path(shard.name) for shard in shards),
        family=architecture,
        parameter_size=human_number(_parameters(gguf)),
        quantization_level=_quantization(header),
        context_length=_whole(header, f"{architecture}.context_length"),
        embedding_length=_whole(header, f"{architecture}.embedding_length"),
        chat_template=_text(header, "tokenizer.chat_template"),
        embeds=f"{architecture}.pooling_type" in header.metadata,
        sees=projector is not None or f"{architecture}.vision.block_count" in header.metadata,
        hears=_hears(gguf, projector, architecture),
        model_info=_info(gguf),
        projector_info=_info(projector) if projector else {},
        tensors=tuple(Tensor(one.name, one.type, one.shape) for one in header.tensors),
        adapters=_adapters(model, record),
        modified_ns=state.st_mtime_ns,
    )


def file_layer(media_type: str, path: Path) -> Layer:
    """A layer of a file that no record tells of. One that cannot be read is known by its path."""
    try:
        with FileBytes(path) as file:
            header = read_header(file)
        size_bytes = path.stat().st_size
        return Layer(media_type, f"sha256:{_digest(path, header, None)}", size_bytes)
    except (OSError, GgufError):
        return Layer(media_type, f"sha256:{hashlib.sha256(bytes(path)).hexdigest()}", 0)


def _adapters(model: Model, record: Record | None) -> tuple[tuple[Layer, Path], ...]:
    return tuple(
        (Layer(ADAPTER, f"sha256:{one.sha256}", one.size_bytes), model.path.with_name(one.file))
        for one in (record.files if record else ())
        if one.role == "lora" and one.sha256
    )


def _record(path: Path) -> Record | None:
    try:
        return read_record(path)
    except OSError:
        return None


def _layers(media_type: str, gguf: GgufModel, record: Record | None) -> tuple[Layer, ...]:
    return tuple(
        Layer(media_type, f"sha256:{_digest(Path(shard.name), shard.header, known)}", size)
        for shard in gguf.shards
        for size in (shard.size_bytes or 0,)
        for known in (record.file(Path(shard.name).name) if record else None,)
    )


def _digest(path: Path, header: GgufHeader, known: FileRecord | None) -> str:
    size_bytes = path.stat().st_size
    if known and known.sha256 and known.size_bytes == size_bytes:
        return known.sha256
    with path.open("rb") as file:
        content = file.read(header.data_offset)
    return hashlib.sha256(content + b"%d" % size_bytes).hexdigest()


def _info(gguf: GgufModel, *, arrays: bool = False) -> dict[str, Any]:
    info = {
        key: _shown(value, arrays)
        for key, value in gguf.header.metadata.items()
        if key not in _HIDDEN
    }
    info.setdefault("general.parameter_count", _parameters(gguf))
    return {key: info[key] for key in sorted(info)}


def _shown(value: Any, arrays: bool) -> Any:
    if isinstance(value, float):
        return shortest_float32(value)
    if isinstance(value, list):
        return [_shown(one, arrays) for one in value] if arrays else None
    return None if isinstance(value, SkippedArray) else value


def _parameters(gguf: GgufModel) -> int:
    return sum(math.prod(tensor.shape) for tensor in gguf.header.tensors)


def _quantization(header: GgufHeader) -> str:
    number = header.metadata.get("general.file_type")
    name = file_type_name(number) if isinstance(number, int) else None
    # llama.cpp says more of these than Ollama's names for them.
    return (name or "unknown").removesuffix("_MOE")


def _hears(gguf: GgufModel, projector: GgufModel | None, architecture: str) -> bool:
    if f"{architecture}.audio.block_count" in gguf.header.metadata:
        return True
    metadata = projector.header.metadata if projector else {}
    return any(
        value is True for key, value in metadata.items() if key.endswith("has_audio_encoder")
    )


def _text(header: GgufHeader, key: str) -> str:
    value = header.metadata.get(key)
    return value if isinstance(value, str) else ""


def _whole(header: GgufHeader, key: str) -> int:
    value = header.metadata.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
