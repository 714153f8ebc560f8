"""`create`: a name from a model or persona, or from uploaded files, with a Modelfile's changes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ...core.gguf_bytes import FileBytes
from ...core.gguf_header import GgufHeader
from ...core.gguf_reader import GgufError, read_header
from ...core.http_client import HttpClient, HttpError
from ...core.model_files import Companion, read_record, wanted_files
from ...core.model_source import Source, SourceError, parse_source
from ...core.model_store import FetchRequest, FetchSettings, ModelStore, StoreError
from ...core.progress import ProgressFile
from ..errors import ApiError
from ..generation.prompt import parse
from ..go_template import TemplateError
from ..ollama_api.api_requests import CreateRequest
from ..ollama_api.api_tools import Message
from ..ollama_api.model_names import INVALID_NAME, ModelName, display_name, name_key, parse_name
from ..ollama_api.modelfile import OWN_TEMPLATE_WITH_TOOLS
from .catalogue import Catalogue
from .layers import ADAPTER, Changes, Layer, from_parent, overlay
from .name_changes import check_free, put
from .personas import Created
from .pulls import Line, fetch_for_servers, in_thread, unwritable
from .survey import Entry, made_from

NEITHER: Final = "neither 'from' or 'files' was specified"
NOT_RELATIVE: Final = "file path must be relative"
NOT_GGUF: Final = "supplied file was not in GGUF format"
_PROJECTORS: Final = ("clip", "mmproj")
# A name may be longer than a file's may be, and the store puts endings behind it.
_MOST_STEM: Final = 150


@dataclass(frozen=True)
class _Content:
    """A file to make a model of."""

    path: Path
    sha256: str


def check(catalogue: Catalogue, request: CreateRequest) -> ModelName:
    """The name to make. Raises ApiError for what is refused before anything is done."""
    for path in (*request.files, *request.adapters):
        if not _is_relative(path):
            raise ApiError(400, NOT_RELATIVE)
    name = parse_name(request.model)
    if name is None:
        raise ApiError(400, INVALID_NAME)
    unsupported = {
        "quantize": "quantize the GGUF file with llama.cpp's llama-quantize before it is uploaded",
        "draft_quantize": "quantize the GGUF file with llama.cpp's llama-quantize first",
        "draft_files": "a draft model is given to an instance in the inventory (gguf_models)",
        "remote_host": "this server runs local models only",
        "renderer": "it names code inside Ollama; leave it out: the model's own chat template, or "
        "the TEMPLATE that is given, renders the conversation",
        "parser": "it names code inside Ollama; leave it out: the answer is read by the model's "
        "own chat template, or the TEMPLATE that is given",
        "info": "what a model is follows from its GGUF file",
    }
    for field, why in unsupported.items():
        if getattr(request, field):
            raise ApiError(400, f"'{field}' is not supported here: {why}")
    check_free(catalogue, request.model)
    return name


async def create(catalogue: Catalogue, request: CreateRequest) -> AsyncGenerator[Line]:
    """Make the name, line by line as Ollama tells it. Raises ApiError."""
    name = check(catalogue, request)
    template = "" if request.template == OWN_TEMPLATE_WITH_TOOLS else request.template
    if template:
        try:
            parse(template)
        except TemplateError as error:
            raise ApiError(400, f"template error: {error}") from error
    if request.from_:
        if name_key(request.from_) is None:
            raise ApiError(400, INVALID_NAME)
        if catalogue.base(request.from_) is None:
            async for line in catalogue.pull(request.from_):
                yield line
    elif request.files:
        yield {"status": "parsing GGUF"}
        entry, owned = await _take_files(catalogue, name, request.files)
    else:
        raise ApiError(400, NEITHER)
    async with catalogue.changing:
        if request.from_:
            entry, owned = _base(catalogue, request.from_)
        created = _made(
            catalogue, entry, made_from(entry, name.display, owned=owned), request, template
        )
        lines = [
            {"status": f"{_how(catalogue, layer)} layer {layer.digest}"} for layer in created.layers
        ]
        await put(catalogue, created)
    for line in (*lines, {"status": "writing manifest"}, {"status": "success"}):
        yield line


def _how(catalogue: Catalogue, layer: Layer) -> str:
    return "using existing" if catalogue.has_content(layer.digest) else "creating new"


def _base(catalogue: Catalogue, name: str) -> tuple[Entry, bool]:
    """What FROM names, and whether its model came by this API."""
    entry = catalogue.base(name)
    if entry is None:
        raise ApiError(404, f"model '{name}' not found")
    layers = from_parent(entry.persona.layers, display_name(name))
    before = catalogue.created(name)
    entry = replace(entry, persona=replace(entry.persona, layers=layers))
    return entry, bool(before and before.owned)


def _made(
    catalogue: Catalogue, entry: Entry, base: Created, request: CreateRequest, template: str
) -> Created:
    """`base`, a name that means `entry`, with the changes that are asked for."""
    layers, adapters = base.layers, base.adapters
    for digest in request.adapters.values():
        layer, path = _adapter(catalogue, entry, digest)
        layers, adapters = (*layers, layer), (*adapters, path)
    changes = Changes(
        template=template,
        system=request.system,
        license=request.license,
        parameters=request.parameters,
        messages=tuple(_message(one) for one in request.messages),
    )
    return replace(
        base,
        layers=overlay(layers, changes),
        adapters=adapters,
        requires=request.requires.removeprefix("v") or base.requires,
    )


def _adapter(catalogue: Catalogue, entry: Entry, digest: str) -> tuple[Layer, Path]:
    """An adapter that the model's instances load. llama-server takes none later on."""
    catalogue.blobs.path(digest)
    wanted = digest.replace("sha256-", "sha256:").lower()
    for layer, path in catalogue.facts(entry.persona.model).adapters:
        if layer.digest == wanted:
            return Layer(ADAPTER, layer.digest, layer.size_bytes), path
    raise ApiError(
        400,
        f"adapter {digest} is none that the instances of {entry.persona.model.name} load: "
        "llama-server takes adapters when it starts, so give it to the model in the inventory "
        "(gguf_models: lora) and run the playbook",
    )


async def _take_files(
    catalogue: Catalogue, name: ModelName, files: Mapping[str, str]
) -> tuple[Entry, bool]:
    """Make uploaded GGUF files a model of the store; True where it goes with its last name."""
    served = _configured(catalogue, files)
    if served is not None:
        return served, False
    directory = catalogue.config.models_dir
    problem = unwritable(directory)
    if problem:
        raise ApiError(403, problem)
    roles: dict[str, _Content] = {}
    for file, digest in sorted(files.items()):
        path = _content(catalogue, file, digest)
        role = await asyncio.to_thread(_role, path)
        if role in roles:
            raise ApiError(
                400,
                f"two of the files are a {role}: give one model file, and at most one projector; "
                "parts of a split model are joined with llama-gguf-split --merge",
            )
        roles[role] = _Content(path, digest[-64:].lower())
    if "model" not in roles:
        raise ApiError(400, "none of the files is a model: a projector alone answers nothing")
    try:
        request = await asyncio.to_thread(_request, directory, catalogue.fetching, name, roles)
        store = ModelStore(HttpClient(), ProgressFile(None, "", "bytes"))
        record = read_record(request.path)
        # A gateway that was stopped midway may have left the model without a name.
        by_clients = record is None or record.source.startswith(f"file:{catalogue.blobs.directory}")
        outcome = await in_thread(lambda: fetch_for_servers(store, request))
    except (StoreError, SourceError, HttpError, OSError) as error:
        raise ApiError(500, str(error)) from error
    await catalogue.refresh()
    entry = catalogue.bare(outcome.after.name)
    if entry is None:
        raise ApiError(500, f"{request.path} is not in the store, although it was put there")
    for digest in files.values():
        catalogue.blobs.remove(digest)
    before = catalogue.created(name.display)
    return entry, by_clients or bool(before and before.owned)


def _configured(catalogue: Catalogue, files: Mapping[str, str]) -> Entry | None:
    """The configuration's model whose file this is: a copy of it would have no instance."""
    if len(files) != 1:
        return None
    (digest,) = files.values()
    model = catalogue.model_with(digest)
    if model is None or not catalogue.is_configured(model):
        return None
    return catalogue.bare(model.name)


def _content(catalogue: Catalogue, file: str, digest: str) -> Path:
    """Where an uploaded content lies, or that of an installed model."""
    path = catalogue.blobs.path(digest)
    if path.is_file():
        return path
    installed = catalogue.file_with(digest)
    if installed is None:
        raise ApiError(400, f"blob not found for {file} (digest {digest}): file does not exist")
    return installed


def _role(path: Path) -> str:
    try:
        with FileBytes(path) as file:
            header = read_header(file)
    except (GgufError, OSError) as error:
        raise ApiError(400, f"{NOT_GGUF}: {error}") from error
    return _role_of(header)


def _role_of(header: GgufHeader) -> str:
    kind = header.metadata.get("general.type")
    if kind == "mmproj" or header.metadata.get("general.architecture") in _PROJECTORS:
        return "projector"
    if kind == "adapter" or "adapter.type" in header.metadata:
        raise ApiError(400, "the file is an adapter; name it in 'adapters', and a model in 'from'")
    return "model"


def _request(
    directory: Path, settings: FetchSettings, name: ModelName, roles: Mapping[str, _Content]
) -> FetchRequest:
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name.display).strip(".-")
    if len(stem) > _MOST_STEM:
        stem = f"{stem[:_MOST_STEM]}-{hashlib.sha256(name.key.encode()).hexdigest()[:12]}"
    file = f"{stem}.gguf"
    here = read_record(directory / file)
    is_own = here is not None and name_key(here.name) == name.key
    if not is_own and (directory / file).exists():
        file = f"{stem}-{roles['model'].sha256[:12]}.gguf"
    own = read_record(directory / file)

    def source(content: _Content) -> Source:
        # What the model has already is in its own place.
        there = own.file(content.path.name) if own and content.path.parent == directory else None
        return parse_source(there.source) if there else Source("file", str(content.path))

    model, projector = roles["model"], roles.get("projector")
    beside = Companion(source(projector), projector.sha256) if projector else None
    files = wanted_files(source(model), file, [model.sha256], mmproj=beside)
    return FetchRequest(name.display, directory, files, settings)


def _is_relative(path: str) -> bool:
    return bool(path) and all(part not in ("", ".", "..") for part in path.split("/"))


def _message(message: Message) -> dict[str, Any]:
    """As Ollama's api.Message is written: role and content always, the rest where it is there."""
    calls = [
        {
            **({"id": call.id} if call.id else {}),
            "function": {"name": call.name, "arguments": dict(call.arguments)},
        }
        for call in message.tool_calls
    ]
    rest = {
        "thinking": message.thinking,
        "images": [base64.b64encode(image).decode() for image in message.images],
        "tool_calls": calls,
        "tool_name": message.tool_name,
        "tool_call_id": message.tool_call_id,
    }
    told: dict[str, Any] = {"role": message.role, "content": message.content}
    return told | {key: value for key, value in rest.items() if value}
