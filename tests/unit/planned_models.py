"""Models of the zoo as `gguf_info` shows them, for tests of the plan."""

from __future__ import annotations

from typing import Any

from ansible_collections.kloros.llm.plugins.module_utils.gguf_types import file_type_name
from ansible_collections.kloros.llm.plugins.module_utils.model_shape import shape_of
from ansible_collections.kloros.llm.plugins.module_utils.plan import models_to_read

from testbed import model_zoo


def header_of(item: dict[str, Any], name: str, *, on_host: bool = False) -> dict[str, Any]:
    """What `gguf_info` would return, in a loop, of a model of the zoo."""
    header = model_zoo.header(name)
    file_type = header.metadata.get("general.file_type")
    shape = shape_of(header).to_data()
    return {
        "item": item,
        "on_host": on_host,
        "architecture": header.metadata["general.architecture"],
        "context_trained": shape["context_trained"],
        "quantisation": file_type_name(file_type) if isinstance(file_type, int) else "Q4_K_M",
        "parameters": sum(_elements(tensor.shape) for tensor in header.tensors),
        "size_bytes": header.data_offset + header.data_bytes,
        "data_bytes": header.data_bytes,
        "shape": shape,
    }


def headers_of(wishes: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The same for every model that is wished for."""
    return [header_of(item, name) for item in models_to_read(wishes)]


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
