"""What people and plans want to know of a GGUF model, as plain data."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Any

from .gguf_files import GgufModel
from .gguf_header import GgufHeader, SkippedArray
from .gguf_types import file_type_name
from .model_shape import ModelShapeError, shape_of

MODEL = "model"
# As much of a text of the header as is shown.
_MAX_TEXT = 200
# By `general.type`; Ollama's and older projectors only say it by their architecture.
_KINDS = {"model": MODEL, "adapter": "adapter", "mmproj": "projector", "imatrix": "imatrix"}
_PROJECTOR_ARCHITECTURES = ("clip", "mmproj")


def model_facts(model: GgufModel) -> dict[str, Any]:
    """Plain JSON, as module gguf_info returns it, without `requests` and `fetched_bytes`."""
    header = model.header
    architecture = _text(header, "general.architecture")
    kind = _kind(header, architecture)
    shape, shape_detail = _shape(header, kind)
    return {
        "name": _text(header, "general.name") or _text(header, "general.basename"),
        "kind": kind,
        "architecture": architecture,
        "size_label": _text(header, "general.size_label"),
        "quantisation": _quantisation(header),
        "parameters": sum(prod(tensor.shape) for tensor in header.tensors),
        "context_trained": _whole(header, f"{architecture}.context_length"),
        "size_bytes": model.size_bytes,
        "files": [
            {"name": shard.name.rpartition("/")[2], "size_bytes": shard.size_bytes}
            for shard in model.shards
        ],
        "revision": model.revision,
        "version": header.version,
        "byte_order": header.byte_order,
        "tensors": len(header.tensors),
        "data_bytes": sum(tensor.size_bytes for tensor in header.tensors),
        "bytes_by_type": _bytes_by_type(header),
        "tokenizer": _text(header, "tokenizer.ggml.model"),
        "vocabulary": _length(header, "tokenizer.ggml.tokens"),
        "chat_template": "tokenizer.chat_template" in header.metadata,
        "shape": shape,
        "shape_detail": shape_detail,
    }


def _kind(header: GgufHeader, architecture: str | None) -> str:
    if architecture in _PROJECTOR_ARCHITECTURES:
        return "projector"
    if "adapter.type" in header.metadata:
        return "adapter"
    stated = _text(header, "general.type")
    return _KINDS.get(stated, "other") if stated else MODEL


def _shape(header: GgufHeader, kind: str) -> tuple[dict[str, Any] | None, str]:
    if kind != MODEL:
        return None, f"a file of kind '{kind}' is no language model"
    try:
        return shape_of(header).to_data(), ""
    except ModelShapeError as error:
        return None, str(error)


def _quantisation(header: GgufHeader) -> str | None:
    """As the file says; else the type that takes most bytes."""
    file_type = _whole(header, "general.file_type")
    stated = file_type_name(file_type) if file_type is not None else None
    return stated or next(iter(_bytes_by_type(header)), None)


def _bytes_by_type(header: GgufHeader) -> dict[str, int]:
    """Bytes of the tensors of each type, most first."""
    count: Counter[str] = Counter()
    for tensor in header.tensors:
        count[tensor.type] += tensor.size_bytes
    return dict(sorted(count.items(), key=lambda item: (-item[1], item[0])))


def _text(header: GgufHeader, key: str) -> str | None:
    """On one line, and without what could command a terminal."""
    value = header.metadata.get(key)
    if not isinstance(value, str):
        return None
    shown = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in value)
    return shown if len(shown) <= _MAX_TEXT else f"{shown[: _MAX_TEXT - 1]}…"


def _whole(header: GgufHeader, key: str) -> int | None:
    value = header.metadata.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _length(header: GgufHeader, key: str) -> int | None:
    value = header.metadata.get(key)
    if isinstance(value, SkippedArray):
        return value.length
    return len(value) if isinstance(value, list) else None
