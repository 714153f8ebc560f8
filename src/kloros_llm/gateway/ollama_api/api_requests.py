"""The requests of Ollama's API: what each one may say, and what is meant by silence.

`Request.parse(body)` raises ApiError 400 with Ollama's text for a body that Ollama does not
take. Models, options and formats are looked at later, in Ollama's order: a missing model is
told before a bad option. Source: api/types.go of Ollama 0.33.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from ..errors import ApiError
from ..go_text import quote
from . import durations
from .api_tools import MESSAGES, TOOLS, Message
from .go_decoding import (
    Decoding,
    Reading,
    anything,
    array,
    boolean,
    image,
    integer,
    integer32,
    mapping,
    own_reader,
    pointer,
    read_struct,
    string,
)
from .json_text import compact
from .ollama_json import decode

_THINK_LEVELS = ("high", "medium", "low", "max")
_LEVELS_TEXT = '"high", "medium", "low", "max", true, or false'
_MOST_LOGPROBS = 20

Options = Mapping[str, Any]


def _keep_alive(reading: Reading, value: Any) -> int:
    try:
        return durations.keep_alive(value)
    except durations.DurationError as error:
        raise reading.stop(str(error)) from None


def _think(reading: Reading, value: Any) -> bool | str:
    if isinstance(value, bool) or value in _THINK_LEVELS:
        return value  # type: ignore[no-any-return]
    if isinstance(value, str):
        raise reading.stop(f"invalid think value: {quote(value)} (must be {_LEVELS_TEXT})")
    raise reading.stop(f"think must be a boolean or string ({_LEVELS_TEXT})")


_options = mapping(anything, "map[string]interface {}")
_texts = mapping(string, "map[string]string")
_images = array(image, "[]api.ImageData")
_optional_boolean = pointer(boolean)

_GENERATION: dict[str, Decoding] = {
    "model": string,
    "stream": _optional_boolean,
    "format": anything,
    "keep_alive": own_reader(_keep_alive),
    "options": _options,
    "think": own_reader(_think),
    "truncate": _optional_boolean,
    "shift": _optional_boolean,
    "_debug_render_only": boolean,
    "logprobs": boolean,
    "top_logprobs": integer,
}


@dataclass(frozen=True, kw_only=True)
class _Generation:
    """What generate and chat have in common.

    `stream`, `truncate` and `shift` are true unless the client says otherwise; `keep_alive_ns`
    and `think` are None where it says nothing.
    """

    model: str = ""
    stream: bool = True
    format: Any = None
    keep_alive_ns: int | None = None
    options: Options = field(default_factory=dict)
    think: bool | str | None = None
    truncate: bool = True
    shift: bool = True
    debug_render_only: bool = False
    logprobs: bool = False
    top_logprobs: int = 0

    @property
    def unloads(self) -> bool:
        """`keep_alive` of 0, which without a prompt means: unload it now."""
        return self.keep_alive_ns == 0

    def response_format(self) -> str | Mapping[str, Any] | None:
        """None, "json" or a JSON schema. Raises ApiError 500, as Ollama does, for others.

        Ollama looks at it when the model is there, so ask for it then.
        """
        if self.format is None or self.format == "":
            return None
        if self.format == "json":
            return "json"
        if isinstance(self.format, dict):
            return self.format
        found = quote(compact(self.format))
        raise ApiError(
            500, f'invalid format: {found}; expected "json" or a valid JSON Schema object'
        )


@dataclass(frozen=True, kw_only=True)
class GenerateRequest(_Generation):
    """POST /api/generate"""

    prompt: str = ""
    suffix: str = ""
    system: str = ""
    template: str = ""
    context: tuple[int, ...] = ()
    raw: bool = False
    images: tuple[bytes, ...] = ()

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """From the body of a request."""
        fields = read_struct("GenerateRequest", _GENERATE, decode(body))
        for unserved in ("width", "height", "steps"):
            fields.pop(unserved, None)
        return cls(**_generation(_tuples(fields, "context", "images")))


_GENERATE: dict[str, Decoding] = {
    **_GENERATION,
    "prompt": string,
    "suffix": string,
    "system": string,
    "template": string,
    "context": array(integer, "[]int"),
    "raw": boolean,
    "images": _images,
    # For models that make images, which llama-server does not run; their types are checked.
    "width": integer32,
    "height": integer32,
    "steps": integer32,
}


@dataclass(frozen=True, kw_only=True)
class ChatRequest(_Generation):
    """POST /api/chat. `tools` are as Ollama writes them, for templates and for the engine."""

    messages: tuple[Message, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """From the body of a request."""
        fields = read_struct("ChatRequest", _CHAT, decode(body))
        return cls(**_generation(_tuples(fields, "messages", "tools")))


_CHAT: dict[str, Decoding] = {**_GENERATION, "messages": MESSAGES, "tools": TOOLS}


@dataclass(frozen=True, kw_only=True)
class EmbedRequest:
    """POST /api/embed"""

    model: str = ""
    input: Any = None
    truncate: bool = True
    dimensions: int = 0
    keep_alive_ns: int | None = None
    options: Options = field(default_factory=dict)

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """From the body of a request."""
        return cls(**_renamed(read_struct("EmbedRequest", _EMBED, decode(body))))

    def inputs(self) -> list[str]:
        """The texts: none for an empty string, which only loads the model.

        Raises ApiError 400 where there is something else in it; ask once the model is found.
        """
        if self.input is None or self.input == "":
            return []
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input, list) and all(isinstance(text, str) for text in self.input):
            return self.input
        raise ApiError(400, "invalid input type")


_EMBED: dict[str, Decoding] = {
    "model": string,
    "input": anything,
    "truncate": _optional_boolean,
    "dimensions": integer,
    "keep_alive": own_reader(_keep_alive),
    "options": _options,
}


@dataclass(frozen=True, kw_only=True)
class EmbeddingsRequest:
    """POST /api/embeddings, the old way"""

    model: str = ""
    prompt: str = ""
    keep_alive_ns: int | None = None
    options: Options = field(default_factory=dict)

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """From the body of a request."""
        return cls(**_renamed(read_struct("EmbeddingRequest", _EMBEDDINGS, decode(body))))


_EMBEDDINGS: dict[str, Decoding] = {
    "model": string,
    "prompt": string,
    "keep_alive": own_reader(_keep_alive),
    "options": _options,
}


@dataclass(frozen=True, kw_only=True)
class ShowRequest:
    """POST /api/show"""

    model: str = ""
    verbose: bool = False
    system: str = ""
    template: str = ""
    options: Options = field(default_factory=dict)

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """From the body of a request."""
        return cls(**_named(read_struct("ShowRequest", _SHOW, decode(body))))


_SHOW: dict[str, Decoding] = {
    "model": string,
    "name": string,
    "verbose": boolean,
    "system": string,
    "template": string,
    "options": _options,
}


@dataclass(frozen=True, kw_only=True)
class CopyRequest:
    """POST /api/copy"""

    source: str = ""
    destination: str = ""

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """From the body of a request."""
        fields: dict[str, Decoding] = {"source": string, "destination": string}
        return cls(**read_struct("CopyRequest", fields, decode(body)))


@dataclass(frozen=True, kw_only=True)
class DeleteRequest:
    """DELETE /api/delete"""

    model: str = ""

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """From the body of a request."""
        fields: dict[str, Decoding] = {"model": string, "name": string}
        return cls(**_named(read_struct("DeleteRequest", fields, decode(body))))


@dataclass(frozen=True, kw_only=True)
class PullRequest:
    """POST /api/pull, and with the same fields /api/push"""

    model: str = ""
    insecure: bool = False
    stream: bool = True

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """From the body of a request."""
        fields = _named(read_struct(cls.__name__, _PULL, decode(body)))
        return cls(**{key: fields[key] for key in ("model", "insecure", "stream") if key in fields})


_PULL: dict[str, Decoding] = {
    "model": string,
    "name": string,
    "insecure": boolean,
    "username": string,
    "password": string,
    "stream": _optional_boolean,
}


@dataclass(frozen=True, kw_only=True)
class PushRequest(PullRequest):
    """POST /api/push"""


@dataclass(frozen=True, kw_only=True)
class CreateRequest:
    """POST /api/create. `license` are all of them, whichever way they were given."""

    model: str = ""
    stream: bool = True
    from_: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    adapters: Mapping[str, str] = field(default_factory=dict)
    draft_files: Mapping[str, str] = field(default_factory=dict)
    template: str = ""
    license: tuple[str, ...] = ()
    system: str = ""
    parameters: Options = field(default_factory=dict)
    messages: tuple[Message, ...] = ()
    quantize: str = ""
    draft_quantize: str = ""
    remote_host: str = ""
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    info: Options = field(default_factory=dict)

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """From the body of a request."""
        fields = _named(read_struct("CreateRequest", _CREATE, decode(body)))
        old = fields.pop("quantization", "")
        fields["quantize"] = fields.get("quantize") or old
        fields["from_"] = fields.pop("from", "")
        fields["license"] = _licenses(fields.get("license"))
        return cls(**_tuples(fields, "messages"))


_CREATE: dict[str, Decoding] = {
    "model": string,
    "name": string,
    "stream": _optional_boolean,
    "from": string,
    "files": _texts,
    "adapters": _texts,
    "draft_files": _texts,
    "template": string,
    "license": anything,
    "system": string,
    "parameters": _options,
    "messages": MESSAGES,
    "quantize": string,
    "quantization": string,
    "draft_quantize": string,
    "remote_host": string,
    "renderer": string,
    "parser": string,
    "requires": string,
    "info": _options,
}


def _licenses(value: Any) -> tuple[str, ...]:
    """Ollama takes a text or an array of them, and passes over anything else."""
    if isinstance(value, str):
        return (value,) if value else ()
    if isinstance(value, list):
        return tuple(text for text in value if isinstance(text, str))
    return ()


def _tuples(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    for name in names:
        fields[name] = tuple(fields.get(name, ()))
    return fields


def _renamed(fields: dict[str, Any]) -> dict[str, Any]:
    if "keep_alive" in fields:
        fields["keep_alive_ns"] = fields.pop("keep_alive")
    return fields


def _generation(fields: dict[str, Any]) -> dict[str, Any]:
    if "_debug_render_only" in fields:
        fields["debug_render_only"] = fields.pop("_debug_render_only")
    if not 0 <= fields.get("top_logprobs", 0) <= _MOST_LOGPROBS:
        raise ApiError(400, f"top_logprobs must be between 0 and {_MOST_LOGPROBS}")
    return _renamed(fields)


def _named(fields: dict[str, Any]) -> dict[str, Any]:
    """`name` is what older clients call `model`."""
    old = fields.pop("name", "")
    fields["model"] = fields.get("model") or old
    return fields
