"""A gateway's routes about models on a real socket, with a store as the recorded Ollama had."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from aiohttp import web

from kloros_llm.core.model_files import FileRecord, Record, write_record
from kloros_llm.gateway.config import Config, Instance, Limits, Listener, Model, PersonaSettings
from kloros_llm.gateway.engines.backends import Backends
from kloros_llm.gateway.errors import ApiError, error_body, family_of
from kloros_llm.gateway.front.metrics import GatewayMetrics
from kloros_llm.gateway.front.services import SERVICES, Services
from kloros_llm.gateway.models.catalogue import Catalogue
from kloros_llm.gateway.ollama_api.routes_models import ROUTES
from tests.unit.gguf_maker import F32, U32, GgufMaker

# The recorded model's blob: data/ollama/store, manifest of smollm2:135m.
SHA256 = "941f309b54caaad6747569ba43712bcde44a2be3bae16c3282ff499c37c54af5"
SIZE_BYTES = 98362432
TEMPLATE = (
    "{{- if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}"
    '{{- range .Messages }}{{- if ne .Role "system" }}<|im_start|>{{ .Role }}\n'
    "{{ .Content }}<|im_end|>\n{{ end }}{{- end }}<|im_start|>assistant\n"
)
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
LICENSE = "Apache License 2.0 (short text of this rig)"
PARAMETERS = {
    "num_ctx": 2048,
    "stop": ["<|im_start|>", "<|im_end|>"],
    "temperature": 0.2,
    "top_p": 0.9,
}
MODIFIED_NS = 1_795_351_055_980_293_000
_Result = TypeVar("_Result")


def smollm2(chat_template: str = "{% for message in messages %}") -> GgufMaker:
    """A header with the recorded model's facts; its one tensor has all the parameters."""
    maker = GgufMaker()
    maker.string("general.architecture", "llama")
    maker.string("general.type", "model")
    maker.string("general.name", "Smollm2 135M")
    maker.strings("general.languages", ["en"])
    maker.number("llama.context_length", U32, 8192)
    maker.number("llama.embedding_length", U32, 576)
    maker.number("llama.rope.freq_base", F32, 100000)
    maker.number("llama.attention.layer_norm_rms_epsilon", F32, 1e-5)
    maker.number("general.file_type", U32, 3)
    maker.strings("tokenizer.ggml.tokens", [f"token {number}" for number in range(100)])
    maker.string("tokenizer.chat_template", chat_template)
    maker.tensor("token_embd.weight", (576, 233533), "Q4_1")
    return maker


def install(
    directory: Path,
    file: str,
    name: str,
    *,
    maker: GgufMaker | None = None,
    sha256: str = SHA256,
    source: str = "hf://HuggingFaceTB/SmolLM2-135M-Instruct-GGUF/SmolLM2.gguf@main",
) -> Path:
    """A model as the store keeps it, without the weights."""
    path = directory / file
    (maker or smollm2()).write_sparse(path)
    with path.open("r+b") as stream:
        stream.truncate(max(SIZE_BYTES, path.stat().st_size))
    state = path.stat()
    size_bytes = state.st_size
    known = FileRecord(
        file, "model", source, None, size_bytes, sha256, True, "2026-11-22", state.st_mtime_ns
    )
    write_record(directory, Record(name, source, None, (known,)))
    return path


@dataclass
class House:
    """What a test changes before it starts: directories, and gateway.toml."""

    models_dir: Path
    config: Config

    @classmethod
    def at(cls, folder: Path) -> House:
        """One instance serves the recorded model under its name, with its Modelfile."""
        models_dir = folder / "models"
        models_dir.mkdir()
        path = install(models_dir, "SmolLM2.gguf", "smollm2:135m")
        config = Config(
            listeners=(Listener("127.0.0.1", 11434),),
            instances={"live": Instance("live", "http://127.0.0.1:9", model="smollm2:135m")},
            models={
                "smollm2:135m": Model("smollm2:135m", path, aliases=("main",), instances=("live",))
            },
            personas={
                "smollm2:135m": PersonaSettings(
                    "smollm2:135m",
                    "smollm2:135m",
                    system=SYSTEM,
                    template=TEMPLATE,
                    parameters=PARAMETERS,
                    license=(LICENSE,),
                )
            },
            models_dir=models_dir,
            state_dir=folder / "state",
            limits=Limits(connect_s=0.2),
        )
        return cls(models_dir, config)

    def change(self, **fields: Any) -> None:
        """Another gateway.toml."""
        self.config = replace(self.config, **fields)

    def run(self, use: Callable[[Client], Awaitable[_Result]]) -> _Result:
        """Start it, use it, stop it. It can be run again, as after a restart."""

        async def running() -> _Result:
            async with Gateway(self.config) as client:
                return await use(client)

        return asyncio.run(running())


class Gateway:
    """The running routes, on every listener of the configuration."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.catalogue = Catalogue(config, plan=config.state_dir / "plan.json", poll_s=0.05)
        self.backends = Backends(config)
        self._runners: list[web.AppRunner] = []

    async def __aenter__(self) -> Client:
        await self.catalogue.start()
        await self.backends.start()
        self.catalogue.have_read = self.backends.read_folders
        metrics = GatewayMetrics()
        urls = []
        for listener in self.config.listeners:
            application = web.Application(middlewares=[_errors])
            services = Services(self.config, listener, self.catalogue, self.backends, metrics)
            application[SERVICES] = services
            for method, path, handler in ROUTES:
                application.router.add_route(method, path, handler)
            runner = web.AppRunner(application)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self._runners.append(runner)
            urls.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        self._session = aiohttp.ClientSession()
        return Client(self, self._session, urls)

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        for runner in self._runners:
            await runner.cleanup()
        await self.backends.close()
        await self.catalogue.close()


@web.middleware
async def _errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        body = error_body(family_of(request.path), error.status, error.text)
        return web.Response(
            status=error.status, body=body.data, headers={"Content-Type": body.content_type}
        )
    except ConnectionError:  # the client has gone
        return web.Response(status=499)


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]

    @property
    def error(self) -> str:
        text = (self.lines or [{}])[-1].get("error")
        assert isinstance(text, str), self.body
        return text


@dataclass(frozen=True)
class Client:
    """Asks the listeners; `gateway` is what runs behind them."""

    gateway: Gateway
    session: aiohttp.ClientSession
    urls: list[str]

    async def ask(self, method: str, path: str, body: Any = None, *, listener: int = 0) -> Answer:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        url = f"{self.urls[listener]}{path}"
        async with self.session.request(method, url, data=data) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str, *, listener: int = 0) -> Answer:
        return await self.ask("GET", path, listener=listener)

    async def post(self, path: str, body: Any = None, *, listener: int = 0) -> Answer:
        return await self.ask("POST", path, body, listener=listener)

    async def names(self, *, listener: int = 0) -> list[str]:
        tags = (await self.get("/api/tags", listener=listener)).json
        return [model["name"] for model in tags["models"]]
