"""A stand-in for llama-server: the same answers' form, thousands of tokens a second, and faults.

In a test's event loop: `async with StandInEngine(...) as engine:` and `engine.url`; in a thread of
its own: `with in_thread(StandInEngine(...)) as url:`; as a process, for measurements:
`python tests/stand_in_engine.py --port 0 --tokens 200 --interval-ms 25` (it prints its URL).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import itertools
import json
import logging
import math
import re
import threading
from array import array
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self
from weakref import WeakSet

from aiohttp import web

_PIECES = (" The", " sea", " is", " calm", ",", " the", " sky", " is", " blåe", " 🌊", ".")
_silent = logging.getLogger("stand_in_engine")
_silent.setLevel(logging.CRITICAL + 1)
_WORD = re.compile(r"\s*\S+|\s+")
_LOADING = {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}


@dataclass(frozen=True)
class Fault:
    """What one request of a generation, or of a call, meets.

    status: an error `status` with `body`. hang_up: the connection closes before any byte.
    hang: nothing is answered until the client leaves. After `after` tokens: reset (as kill -9),
    cut (the answer ends properly, but without its last object), garbage (`body` amid the events),
    error_event (llama-server's error in the stream), stall (no further byte).
    """

    kind: Literal["status", "hang_up", "hang", "reset", "cut", "garbage", "error_event", "stall"]
    after: int = 0
    status: int = 503
    body: bytes = json.dumps(_LOADING).encode()


@dataclass(frozen=True)
class Asked:
    """One request as it came; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


class StandInEngine:
    """One engine. Its attributes may be changed while it runs.

    An answer is `answer_tokens` long, made of `pieces` over and over, cut by n_predict or
    max_tokens; chat answers begin with `thinking` and end with `tool_calls` (name, arguments as
    JSON text). `faults` are met by the next requests in turn, probes excepted. `interval_s` is
    the time from one token to the next, `first_s` that from the headers to the first one. While
    `silent`, it takes connections and answers nothing, not even probes. A router has
    `router_models`, and those that it finds in `models_dir` when it starts or is asked to reload.
    """

    def __init__(
        self,
        *,
        pieces: Sequence[str] = _PIECES,
        answer_tokens: int = 11,
        interval_s: float = 0.0,
        first_s: float = 0.0,
        context_tokens: int = 4096,
        slots: int = 4,
        model: str = "stand-in",
        embeddings: bool = True,
        api_key: str | None = None,
        router_models: Sequence[str] = (),
        models_dir: Path | None = None,
        load_s: float = 0.0,
    ) -> None:
        self.pieces = tuple(pieces)
        self.answer_tokens = answer_tokens
        self.interval_s = interval_s
        self.first_s = first_s
        self.context_tokens = context_tokens
        self.slots = slots
        self.model = model
        self.embeddings = embeddings
        self.api_key = api_key
        self.thinking: tuple[str, ...] = ()
        self.tool_calls: tuple[tuple[str, str], ...] = ()
        self.loading = False
        self.silent = False
        self.hangs_up_on_reuse = False
        self.pings = False
        self.fails_to_load = False
        self.faults: deque[Fault] = deque()
        self.asked: list[Asked] = []
        self.generating = 0
        self.left_by_client = 0
        self.connections = 0
        self.port = 0
        self.load_s = load_s
        self.models = dict.fromkeys(router_models, "unloaded")
        self.models_dir = models_dir
        self.reloads = 0
        self.reload_s = 0.0
        self._preset = tuple(router_models)
        self._runner: web.AppRunner | None = None
        self._used: WeakSet[asyncio.Transport] = WeakSet()
        self._vocabulary: list[str] = []
        self._ids: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        for piece in self.pieces:
            self._id(piece)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, port: int | None = None) -> None:
        """Listens; where it listened before, or where a free port is."""
        self._read_folder()
        application = web.Application(client_max_size=1 << 30)
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(
            application,
            access_log=None,
            logger=_silent,  # its faults are wanted
            handler_cancellation=True,
            shutdown_timeout=0.1,
        )
        await self._runner.setup()
        site = web.TCPSite(
            self._runner, "127.0.0.1", self.port if port is None else port, backlog=1024
        )
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Ends as by kill -9: every connection is reset."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        for site in list(runner.sites):
            await site.stop()
        for transport in list(self._used):
            transport.abort()
        self._used.clear()
        await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError
        reused = transport in self._used
        self._used.add(transport)
        self.connections += not reused
        raw = await request.read()
        path = "/" + request.match_info["path"]
        if self.silent:
            await self._until_left()
        if path in {"/health", "/slots"}:
            return self._health(path)
        headers = {name.lower(): value for name, value in request.headers.items()}
        try:
            body = json.loads(raw) if raw else None
        except ValueError:
            return _no_json(path)
        self.asked.append(Asked(request.method, path, headers, body))
        if self.loading:
            return self._health()
        if self.api_key is not None and headers.get("authorization") != f"Bearer {self.api_key}":
            return _error(401, "Invalid API Key", "authentication_error")
        if path in {"/v1/models", "/props"} or path.startswith("/models"):
            if "reload" in request.query:
                self.reloads += 1
                await asyncio.sleep(self.reload_s)
                self._read_folder()
            return self._about(request.method, path, body)
        if reused and self.hangs_up_on_reuse:
            transport.abort()
            raise ConnectionResetError
        fault = self.faults.popleft() if self.faults else None
        refusal = await self._before_answering(transport, body, fault)
        return refusal or await self._answer_to(request, path, body, fault)

    def _health(self, path: str = "/health") -> web.Response:
        if self.loading:
            return web.json_response(_LOADING, status=503)
        if path == "/slots":
            busy = (index < self.generating for index in range(self.slots))
            return web.json_response([{"is_processing": one} for one in busy])
        return web.json_response({"status": "ok"})

    async def _before_answering(
        self, transport: asyncio.Transport, body: Any, fault: Fault | None
    ) -> web.Response | None:
        if fault is not None and fault.kind == "status":
            return web.Response(
                status=fault.status, body=fault.body, content_type="application/json"
            )
        if fault is not None and fault.kind == "hang_up":
            transport.abort()
            raise ConnectionResetError
        if fault is not None and fault.kind == "hang":
            await self._until_left()
        return await self._routes_to(body) if self.is_router else None

    async def _answer_to(
        self, request: web.Request, path: str, body: Any, fault: Fault | None
    ) -> web.StreamResponse:
        if path in {"/completion", "/completions", "/v1/completions"}:
            return await self._generate(request, body, fault, chat=False)
        if path in {"/v1/chat/completions", "/chat/completions"}:
            return await self._generate(request, body, fault, chat=True)
        return self._call(path, body)

    async def _until_left(self) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.left_by_client += 1

    # what it knows

    def _about(self, method: str, path: str, body: Any) -> web.Response:
        if path == "/props":
            return web.json_response(
                {
                    "default_generation_settings": {"n_ctx": self.context_tokens},
                    "total_slots": self.slots,
                    "model_path": f"/models/{self.model}.gguf",
                    "chat_template": "{{ messages }}",
                    "modalities": {"vision": False, "audio": False},
                    "bos_token": "",
                    "eos_token": "<|im_end|>",
                }
            )
        if method == "GET":
            names = self.models if self.is_router else {self.model: "loaded"}
            data = [
                {
                    "id": f"m{index}" if name in self._preset else name,
                    "aliases": [name] if name in self._preset or not self.is_router else [],
                    "object": "model",
                    "status": self._model_status(value),
                }
                for index, (name, value) in enumerate(names.items())
            ]
            return web.json_response({"object": "list", "data": data})
        name = body["model"]
        if name not in self.models:
            return _error(404, "File Not Found", "not_found_error")
        if path == "/models/load":
            if self.models[name] != "unloaded":
                return _error(400, "model is already running", "invalid_request_error")
            self._load(name)
        else:
            if self.models[name] == "unloaded":
                return _error(400, "model is not running", "invalid_request_error")
            self.models[name] = "unloaded"
        return web.json_response({"success": True})

    @property
    def is_router(self) -> bool:
        return bool(self._preset) or self.models_dir is not None

    def _read_folder(self) -> None:
        """As llama-server does: what is loaded and still there stays so."""
        if self.models_dir is None:
            return
        there = {path.parent.name for path in self.models_dir.glob("*/*.gguf") if path.is_file()}
        self.models = {
            name: self.models.get(name, "unloaded") for name in (*self._preset, *sorted(there))
        }

    def _model_status(self, value: str) -> dict[str, Any]:
        if value == "unloaded" and self.fails_to_load:
            return {"value": value, "failed": True, "exit_code": 1}
        return {"value": value}

    def _load(self, name: str) -> None:
        async def loaded() -> None:
            await asyncio.sleep(self.load_s)
            if self.models[name] == "loading":
                self.models[name] = "unloaded" if self.fails_to_load else "loaded"

        self.models[name] = "loading"
        task = asyncio.get_running_loop().create_task(loaded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _routes_to(self, body: Any) -> web.Response | None:
        name = (body or {}).get("model", "")
        if name not in self.models:
            return _error(400, f"model '{name}' not found", "invalid_request_error")
        if self.models[name] == "unloaded":
            self._load(name)
        while self.models[name] == "loading":
            await asyncio.sleep(0.005)
        return None

    def _id(self, piece: str) -> int:
        found = self._ids.setdefault(piece, len(self._vocabulary))
        if found == len(self._vocabulary):
            self._vocabulary.append(piece)
        return found

    def _tokens(self, text: str) -> list[int]:
        return [self._id(word) for word in _WORD.findall(text)]

    def _call(self, path: str, body: Any) -> web.Response:
        if path == "/tokenize":
            return web.json_response({"tokens": self._tokens(body["content"])})
        if path == "/detokenize":
            text = "".join(self._vocabulary[token] for token in body["tokens"])
            return web.json_response({"content": text})
        if path == "/apply-template":
            return web.json_response({"prompt": _chatml(body["messages"])})
        if path in {"/v1/embeddings", "/embeddings"}:
            return self._embed(body)
        return _error(404, "File Not Found", "not_found_error")

    def _embed(self, body: Any) -> web.Response:
        if not self.embeddings:
            text = "This server does not support embeddings. Start it with `--embeddings`"
            return _error(501, text, "not_supported_error")
        inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
        tokens = sum(len(self._tokens(one)) for one in inputs)
        form = _base64 if body.get("encoding_format") == "base64" else list
        data = [
            {"object": "embedding", "index": index, "embedding": form(_vector(one))}
            for index, one in enumerate(inputs)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return web.json_response(
            {"object": "list", "model": self.model, "data": data, "usage": usage}
        )

    # generations

    async def _generate(
        self, request: web.Request, body: Any, fault: Fault | None, *, chat: bool
    ) -> web.StreamResponse:
        prompt = _chatml(body["messages"]) if chat else body["prompt"]
        if isinstance(prompt, dict):
            prompt = prompt["prompt_string"]
        tokens = len(self._tokens(prompt)) if isinstance(prompt, str) else len(prompt)
        if tokens > self.context_tokens:
            text = (
                f"request ({tokens} tokens) exceeds the available context size "
                f"({self.context_tokens} tokens), try increasing it"
            )
            return _error(
                400,
                text,
                "exceed_context_size_error",
                n_prompt_tokens=tokens,
                n_ctx=self.context_tokens,
            )
        wanted = body.get("max_tokens", body.get("n_predict", -1))
        count = self.answer_tokens if wanted < 0 else min(wanted, self.answer_tokens)
        form = _ChatForm(self, body, tokens) if chat else _CompletionForm(self, body, tokens)
        limit = 0 <= wanted < self.answer_tokens
        events = form.events(count, limit=limit)
        self.generating += 1
        try:
            if not body.get("stream"):
                await asyncio.sleep(self.first_s + count * self.interval_s)
                return web.json_response(form.whole(count, limit=limit))
            return await self._stream(request, events, fault)
        except (asyncio.CancelledError, ConnectionError):
            self.left_by_client += 1
            raise
        finally:
            self.generating -= 1

    async def _stream(
        self, request: web.Request, events: Iterator[bytes], fault: Fault | None
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        transport = request.transport
        if transport is None:
            raise ConnectionResetError
        response._payload_writer.send_headers()  # type: ignore[union-attr]  # else with the first token
        await asyncio.sleep(self.first_s)
        if self.pings:
            await response.write(b":\n\n")
        for index, event in enumerate(events):
            if fault is not None and index == fault.after:
                if fault.kind == "reset":
                    transport.abort()
                    raise ConnectionResetError
                if fault.kind == "cut":
                    break
                if fault.kind == "stall":
                    await asyncio.get_running_loop().create_future()
                if fault.kind == "garbage":
                    await response.write(fault.body + b"\n\n")
                if fault.kind == "error_event":
                    error = {"error": {"code": 500, "message": "it broke", "type": "server_error"}}
                    await response.write(b"data: " + json.dumps(error).encode() + b"\n\n")
                    break
            if transport.is_closing():
                raise ConnectionResetError
            # The chunk by hand: a third of what StreamResponse.write takes.
            transport.write(b"%x\r\n%b\r\n" % (len(event), event))
            if transport.get_write_buffer_size() > 1 << 16:
                await response.write(b":\n\n")
            await asyncio.sleep(self.interval_s)
        await response.write_eof()
        return response


class _CompletionForm:
    """POST /completion's events."""

    def __init__(self, engine: StandInEngine, body: Any, prompt_tokens: int) -> None:
        self.engine = engine
        self.prompt_tokens = prompt_tokens
        self.probabilities = int(body.get("n_probs", 0))

    def events(self, count: int, *, limit: bool) -> Iterator[bytes]:
        """Each token's, then the last one."""
        pieces = itertools.islice(itertools.cycle(self.engine.pieces), count)
        for index, piece in enumerate(pieces):
            event = {
                "index": 0,
                "content": piece,
                "tokens": self.engine._tokens(piece)[:1],
                "stop": False,
                "id_slot": -1,
                "tokens_predicted": index + 1,
                "tokens_evaluated": self.prompt_tokens,
            }
            if self.probabilities:
                event["completion_probabilities"] = [_probability(piece, self.probabilities)]
            yield _event(event)
        yield _event(self._last(count, limit=limit))

    def _last(self, count: int, *, limit: bool) -> dict[str, Any]:
        return {
            "index": 0,
            "content": "",
            "tokens": [],
            "id_slot": 0,
            "stop": True,
            "model": self.engine.model,
            "tokens_predicted": count,
            "tokens_evaluated": self.prompt_tokens,
            "truncated": False,
            "stop_type": "limit" if limit else "eos",
            "stopping_word": "",
            "timings": _timings(self.prompt_tokens, count),
        }

    def whole(self, count: int, *, limit: bool) -> dict[str, Any]:
        """The answer where no stream is asked for."""
        text = "".join(itertools.islice(itertools.cycle(self.engine.pieces), count))
        return {**self._last(count, limit=limit), "content": text}


class _ChatForm:
    """POST /v1/chat/completions' events."""

    def __init__(self, engine: StandInEngine, body: Any, prompt_tokens: int) -> None:
        self.engine = engine
        self.prompt_tokens = prompt_tokens
        self.usage = bool((body.get("stream_options") or {}).get("include_usage"))
        self.probabilities = int(body.get("top_logprobs", 1)) if body.get("logprobs") else 0

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return _event(
            {
                "choices": choices,
                "created": 1795402078,
                "id": "chatcmpl-MXumluiNEBK3PDTopeTzatdPaTQb3o2H",
                "model": self.engine.model,
                "system_fingerprint": "b1-0c1e570",
                "object": "chat.completion.chunk",
                **more,
            }
        )

    def _delta(self, delta: dict[str, Any], **more: Any) -> bytes:
        return self._chunk([{"finish_reason": None, "index": 0, "delta": delta, **more}])

    def events(self, count: int, *, limit: bool) -> Iterator[bytes]:
        """The role, thinking, each token's, the calls' in parts, the reason, the usage."""
        yield self._delta({"role": "assistant", "content": None})
        for thought in self.engine.thinking:
            yield self._delta({"reasoning_content": thought})
        for piece in itertools.islice(itertools.cycle(self.engine.pieces), count):
            if self.probabilities:
                probability = _probability(piece, self.probabilities)
                yield self._delta({"content": piece}, logprobs={"content": [probability]})
            else:
                yield self._delta({"content": piece})
        for index, (name, arguments) in enumerate(self.engine.tool_calls):
            head = {"name": name, "arguments": arguments[:3]}
            call = {"index": index, "id": f"id{index}", "type": "function", "function": head}
            yield self._delta({"tool_calls": [call]})
            rest = {"index": index, "function": {"arguments": arguments[3:]}}
            yield self._delta({"tool_calls": [rest]})
        last = [{"finish_reason": self._reason(limit=limit), "index": 0, "delta": {}}]
        timings = _timings(self.prompt_tokens, count)
        if self.usage:
            yield self._chunk(last)
            yield self._chunk([], usage=self._usage(count), timings=timings)
        else:
            yield self._chunk(last, timings=timings)
        yield b"data: [DONE]\n\n"

    def _reason(self, *, limit: bool) -> str:
        if limit:
            return "length"
        return "tool_calls" if self.engine.tool_calls else "stop"

    def _usage(self, count: int) -> dict[str, Any]:
        return {
            "completion_tokens": count,
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": count + self.prompt_tokens,
            "prompt_tokens_details": {"cached_tokens": self.prompt_tokens // 2},
        }

    def whole(self, count: int, *, limit: bool) -> dict[str, Any]:
        """The answer where no stream is asked for."""
        text = "".join(itertools.islice(itertools.cycle(self.engine.pieces), count))
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if self.engine.thinking:
            message["reasoning_content"] = "".join(self.engine.thinking)
        if self.engine.tool_calls:
            message["tool_calls"] = [
                {
                    "id": f"id{index}",
                    "type": "function",
                    "function": {"name": name, "arguments": arguments},
                }
                for index, (name, arguments) in enumerate(self.engine.tool_calls)
            ]
        reason = self._reason(limit=limit)
        return {
            "choices": [{"finish_reason": reason, "index": 0, "message": message}],
            "created": 1795402078,
            "model": self.engine.model,
            "object": "chat.completion",
            "usage": self._usage(count),
            "id": "chatcmpl-MXumluiNEBK3PDTopeTzatdPaTQb3o2H",
            "timings": _timings(self.prompt_tokens, count),
        }


def _timings(prompt_tokens: int, count: int) -> dict[str, Any]:
    cached = prompt_tokens // 2
    return {
        "cache_n": cached,
        "prompt_n": prompt_tokens - cached,
        "prompt_ms": 12.5,
        "predicted_n": count,
        "predicted_ms": 10.0 * count,
    }


def _probability(piece: str, count: int) -> dict[str, Any]:
    one = {"id": 7, "token": piece, "bytes": list(piece.encode()), "logprob": -0.25}
    other = {"id": 8, "token": "x", "bytes": [120], "logprob": -2.5}
    return {**one, "top_logprobs": [one, other][:count]}


def _event(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + text.encode() + b"\n\n"


def _error(status: int, message: str, kind: str, **more: int) -> web.Response:
    error = {"code": status, "message": message, "type": kind, **more}
    return web.json_response({"error": error}, status=status)


def _no_json(path: str) -> web.Response:
    if path == "/v1/audio/transcriptions":
        text = "The current model does not support audio input."
        return _error(501, text, "not_supported_error")
    return _error(500, "[json.exception.parse_error.101] parse error", "server_error")


def _chatml(messages: Sequence[Mapping[str, Any]]) -> str:
    turns = [f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in messages]
    return "".join(turns) + "<|im_start|>assistant\n"


def _vector(text: str) -> list[float]:
    raw = [byte - 127.5 for byte in hashlib.sha256(text.encode()).digest()[:8]]
    length = math.sqrt(sum(one * one for one in raw))
    return [one / length for one in raw]


def _base64(vector: list[float]) -> str:
    return base64.b64encode(array("f", vector).tobytes()).decode()


@contextmanager
def in_thread(engine: StandInEngine) -> Iterator[str]:
    """Runs it beside the test; the value is its URL."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(engine.start(), loop).result(10)
    try:
        yield engine.url
    finally:
        asyncio.run_coroutine_threadsafe(engine.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def main() -> None:
    """Serves until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=200, help="of an answer")
    parser.add_argument("--interval-ms", type=float, default=0.0, help="from token to token")
    parser.add_argument("--first-ms", type=float, default=0.0, help="from headers to a token")
    parser.add_argument("--context", type=int, default=4096)
    arguments = parser.parse_args()

    async def serve() -> None:
        engine = StandInEngine(
            answer_tokens=arguments.tokens,
            interval_s=arguments.interval_ms / 1000,
            first_s=arguments.first_ms / 1000,
            context_tokens=arguments.context,
        )
        await engine.start(arguments.port)
        print(engine.url, flush=True)
        await asyncio.get_running_loop().create_future()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
