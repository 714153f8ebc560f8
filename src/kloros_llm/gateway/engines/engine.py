"""One llama-server over HTTP. It decides nothing: backends.py waits, retries and chooses."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import math
from array import array
from collections.abc import AsyncGenerator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import aiohttp
from yarl import URL

from ..config import Instance
from .engine_answers import Answer, ChatAnswer, CompletionAnswer, failure, invalid_answer
from .engine_errors import (
    EngineGoneError,
    EngineLoadingError,
    EngineRefusedError,
    EngineStalledError,
)
from .http_stream import HttpConnectError, HttpStream, NotHttpError, open_stream
from .pieces import Ending, Piece
from .sse import EventParser, EventTooLargeError

Health = Literal["ok", "loading"]

_ERROR_BYTES = 1 << 20
_PROBE_S = 2.0
# A router waits for the models that it ends, each at most 10 s.
_READ_FOLDER_S = 15.0
_JSON = "application/json"

# What of the last object is needed: it else holds the whole prompt again.
_LAST_FIELDS = ["content", "tokens", "stop", "stop_type", "timings"]

_NO_CONNECTION = (HttpConnectError, aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


@dataclass(frozen=True)
class Embeddings:
    """One vector an input, in order; `prompt_tokens` of all inputs together."""

    vectors: list[list[float]]
    prompt_tokens: int


class EngineAnswer:
    """An answer to pass on, as it comes. Close it in the end, or in the middle."""

    def __init__(self, stream: HttpStream) -> None:
        self.content_type = stream.content_type
        self._stream = stream

    async def read(self) -> bytes:
        """What came since; b"" at the end. Raises EngineGoneError."""
        try:
            return await self._stream.read()
        except (NotHttpError, OSError) as error:
            _raise_gone(error, began=False)

    async def whole(self) -> bytes:
        """All of it, closed. Raises EngineGoneError."""
        parts = []
        try:
            while part := await self.read():
                parts.append(part)
        finally:
            self.close()
        return b"".join(parts)

    def close(self) -> None:
        """Closes the connection: llama-server stops generating, where it still does."""
        self._stream.close()


@dataclass
class Pulse:
    """Whether an instance answers its probes, as it does while it reads a long prompt or has
    others in line. `silent_since` is of the event loop's clock; None: it does.
    """

    silent_since: float | None = -math.inf

    def alive_at(self) -> float:
        """When it last gave a sign of life."""
        now = asyncio.get_running_loop().time()
        return now if self.silent_since is None else self.silent_since


@dataclass
class Connection:
    """Told by the session of each request: whether its connection had served before."""

    reused: bool = False


class Engine:
    """A llama-server, or one `model` of a router. Holds no state but its sessions.

    Every method raises EngineError (it answered with an error), EngineLoadingError,
    EngineRefusedError (nobody listens), EngineStalledError or EngineGoneError.
    `fresh` is a session that never uses a connection twice.
    """

    def __init__(
        self,
        instance: Instance,
        session: aiohttp.ClientSession,
        fresh: aiohttp.ClientSession,
        *,
        api_key: str | None = None,
        model: str | None = None,
    ) -> None:
        self.instance = instance
        self.model = model
        self._session = session
        self._fresh = fresh
        self._pulse = Pulse()
        self._base = instance.url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._json_headers = {**self._headers, "Content-Type": _JSON}

    def on_fresh_connection(self) -> Engine:
        """The same engine; each request opens a connection of its own."""
        engine = copy(self)
        engine._session = self._fresh
        return engine

    def for_model(self, model: str) -> Engine:
        """A router's engine for one of its models."""
        engine = copy(self)
        engine.model = model
        return engine

    def completion(self, body: Mapping[str, Any]) -> AsyncGenerator[Piece | Ending]:
        """POST /completion as a stream. The last item is the Ending.

        A Piece's `tokens` lack those that made up a character together with a later one.
        """
        body = {**body, "stream": True, "response_fields": _LAST_FIELDS}
        return self._stream("/completion", body, CompletionAnswer())

    def chat(self, body: Mapping[str, Any]) -> AsyncGenerator[Piece | Ending]:
        """POST /v1/chat/completions as a stream. The last item is the Ending.

        A tool call comes as one Piece when it is whole; `tokens` only along with logprobs.
        """
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        return self._stream("/v1/chat/completions", body, ChatAnswer())

    async def _stream(
        self, path: str, body: Mapping[str, Any], answer: Answer
    ) -> AsyncGenerator[Piece | Ending]:
        parser = EventParser()
        began = False
        stream = await self._open(path, self._encoded(body))
        try:
            if stream.content_type != "text/event-stream":
                raise invalid_answer(f"is {stream.content_type}, not a stream of events")
            read = stream.read
            while answer.ending is None and (chunk := await read()):
                for data in parser.feed(chunk):
                    for piece in answer.read(data):
                        began = True
                        yield piece
        except EventTooLargeError:
            raise invalid_answer("holds an event without end") from None
        except (NotHttpError, OSError) as error:
            _raise_gone(error, began=began)
        finally:
            # Closes the connection: llama-server stops generating, where it still does.
            stream.close()
        if answer.ending is None:
            raise EngineGoneError("the answer ended without its last object", began=began)
        yield answer.ending

    async def open(self, path: str, body: bytes, content_type: str = _JSON) -> EngineAnswer:
        """POST, to pass its answer on. However long that takes to begin, the engine is only given
        up where it is silent otherwise too.
        """
        return EngineAnswer(await self._open(path, body, content_type))

    async def _open(self, path: str, body: bytes, content_type: str = _JSON) -> HttpStream:
        """An answer on a connection of its own. Raises what another status than 200 stands for."""
        limits = self._session.timeout
        headers = {**self._headers, "Content-Type": content_type}
        try:
            stream = await open_stream(
                self._url(path),
                headers,
                body,
                connect_s=limits.sock_connect,
                stall_s=limits.sock_read,
                alive_at=self._pulse.alive_at,
            )
            if stream.status == 200:
                return stream
            try:
                raw = await _error_text(stream)
            finally:
                stream.close()
        except (HttpConnectError, NotHttpError, OSError) as error:
            _raise_gone(error, began=False)
        raise failure(stream.status, raw)

    async def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """The ids of `text`; `special`: with the tokens that the model begins a prompt with."""
        body = {"content": text, "add_special": special, "parse_special": True}
        answer = await self._call("/tokenize", body)
        return [int(token) for token in _field(answer, "tokens", list)]

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of ids."""
        answer = await self._call("/detokenize", {"tokens": list(tokens)})
        return str(_field(answer, "content", str))

    async def apply_template(self, body: Mapping[str, Any]) -> str:
        """The prompt that a chat request's `messages`, `tools` and so on make."""
        return str(_field(await self._call("/apply-template", body), "prompt", str))

    async def embed(self, inputs: Sequence[str | Sequence[int]]) -> Embeddings:
        """A vector for each text, or each list of token ids."""
        # As bytes: a tenth of the text of the numbers, and exactly the float32 that it has.
        body = {"input": list(inputs), "encoding_format": "base64"}
        raw = await (await self.open("/v1/embeddings", self._encoded(body))).whole()
        answer = _object(raw)
        try:
            return Embeddings(
                vectors=[_vector(one["embedding"]) for one in answer["data"]],
                prompt_tokens=int(answer["usage"]["prompt_tokens"]),
            )
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise invalid_answer(f"to /v1/embeddings lacks {error}") from error

    async def props(self) -> dict[str, Any]:
        """What the server says of itself and its model. Loads nothing on a router."""
        query = {"model": self.model, "autoload": "false"} if self.model else None
        return await self._object(await self._send("GET", self._url("/props", query)))

    async def health(self) -> Health:
        """Whether it answers. Raises EngineStalledError where that takes longer than 2 s."""
        try:
            await self._probed("/health")
        except EngineLoadingError:
            return "loading"
        return "ok"

    async def _probed(self, path: str) -> dict[str, Any]:
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(_PROBE_S):
                answer = await self._object(await self._send("GET", self._url(path)))
        except (TimeoutError, EngineStalledError):
            if self._pulse.silent_since is None:
                self._pulse.silent_since = began
            raise EngineStalledError(f"no answer to {path}", began=False) from None
        self._pulse.silent_since = None
        return answer

    async def models(self) -> dict[str, dict[str, Any]]:
        """A router's models by alias, or by name where they have none: `value` is loaded,
        loading, unloaded or sleeping; `failed` and `exit_code` where a load did not succeed.

        A name in gateway.toml is an alias there: llama-server rewrites names of presets
        ("x:7b-q4_K_M" becomes "x:Q4_K_M").
        """
        answer = await self._probed("/models")
        try:
            return {
                name: dict(one.get("status") or {})
                for one in answer["data"]
                for name in one.get("aliases") or (one["id"],)
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise invalid_answer(f"to /models lacks {error}") from error

    async def read_folder(self) -> None:
        """Has a router read its folder of models and its presets anew. It ends what is loaded and
        no longer there, and leaves all others alone.
        """
        url = self._url("/models", {"reload": "1"})
        try:
            async with asyncio.timeout(_READ_FOLDER_S):
                await self._object(await self._send("GET", url))
        except TimeoutError:
            raise EngineStalledError("no answer to /models?reload=1", began=False) from None

    async def load(self) -> None:
        """Has a router begin to load its `model`; `models` tells when that is done."""
        await self._call("/models/load", {})

    async def unload(self) -> None:
        """Has a router end its `model`."""
        await self._call("/models/unload", {})

    def _url(self, path: str, query: Mapping[str, str] | None = None) -> URL:
        url = URL(self._base + path, encoded=True)
        return url.with_query(query) if query else url

    async def _call(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return await self._object(await self._send("POST", self._url(path), self._encoded(body)))

    def _encoded(self, body: Mapping[str, Any]) -> bytes:
        if self.model is not None:
            body = {**body, "model": self.model}
        return json.dumps(body, separators=(",", ":")).encode()

    async def _send(
        self, method: str, url: URL, data: bytes | None = None
    ) -> aiohttp.ClientResponse:
        """The answer's beginning. Raises what another status than 200 stands for."""
        headers = self._json_headers if data is not None else self._headers
        response = await self._request(method, url, headers, data)
        if response.status != 200:
            raise await _failure(response)
        return response

    async def _request(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        data: bytes | None,
    ) -> aiohttp.ClientResponse:
        connection = Connection()
        try:
            return await self._session.request(
                method,
                url,
                headers=headers,
                data=data,
                allow_redirects=False,
                trace_request_ctx=connection,
            )
        except (aiohttp.ClientError, OSError) as error:
            _raise_gone(error, began=False, reused=connection.reused)

    async def _object(self, response: aiohttp.ClientResponse) -> dict[str, Any]:
        try:
            return _object(await response.read())
        except (aiohttp.ClientError, OSError) as error:
            _raise_gone(error, began=False)
        finally:
            response.close()


def _object(raw: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise invalid_answer("is not JSON") from error
    if not isinstance(answer, dict):
        raise invalid_answer("is no object")
    return answer


async def _failure(response: aiohttp.ClientResponse) -> Exception:
    raw = b""
    try:
        while len(raw) < _ERROR_BYTES and (chunk := await response.content.readany()):
            raw += chunk
    except (aiohttp.ClientError, OSError) as error:
        return EngineGoneError(f"an error's text broke off: {_said(error)}", began=False)
    finally:
        response.close()
    return failure(response.status, raw)


async def _error_text(stream: HttpStream) -> bytes:
    raw = b""
    while len(raw) < _ERROR_BYTES and (chunk := await stream.read()):
        raw += chunk
    return raw


def _raise_gone(error: Exception, *, began: bool, reused: bool = False) -> NoReturn:
    if isinstance(error, _NO_CONNECTION):
        raise EngineRefusedError(_said(error)) from error
    if isinstance(error, (aiohttp.SocketTimeoutError, TimeoutError)):
        raise EngineStalledError("it sent nothing for too long", began=began) from error
    if isinstance(error, (aiohttp.ClientResponseError, NotHttpError)):
        raise invalid_answer("is no HTTP") from error
    raise EngineGoneError(_said(error), began=began, reused=reused) from error


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _field(answer: Mapping[str, Any], name: str, kind: type) -> Any:
    value = answer.get(name)
    if not isinstance(value, kind):
        raise invalid_answer(f"lacks {name!r}")
    return value


def _vector(embedding: str | list[float]) -> list[float]:
    if isinstance(embedding, str):
        numbers = array("f")
        numbers.frombytes(base64.b64decode(embedding, validate=True))
        return numbers.tolist()
    return [float(number) for number in embedding]
