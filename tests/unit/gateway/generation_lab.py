"""A whole listener on a real socket, in front of a stand-in engine."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from kloros_llm.gateway.config import Config, Instance, Limits, Listener, Model, PersonaSettings
from kloros_llm.gateway.engines.backends import Backends
from kloros_llm.gateway.front.access import Access
from kloros_llm.gateway.front.access_log import AccessLog
from kloros_llm.gateway.front.activation import bound_sockets
from kloros_llm.gateway.front.application import UPLOAD_ROUTES, make_application
from kloros_llm.gateway.front.connections import ListenerServer
from kloros_llm.gateway.front.guard import Guard
from kloros_llm.gateway.front.metrics import GatewayMetrics
from kloros_llm.gateway.front.services import Services
from kloros_llm.gateway.models.catalogue import Catalogue
from tests.stand_in_engine import StandInEngine
from tests.unit.gguf_maker import F32, U32, GgufMaker

CHATML = (
    "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
    "<|im_start|>assistant\n"
)
TOOLS_TEMPLATE = (
    "{{ if .Tools }}{{ .Tools }}{{ end }}{{ range .Messages }}{{ .Role }}: {{ .Content }}"
    '{{ if .ToolCalls }}<tool_call>{{ range .ToolCalls }}{"name": "{{ .Function.Name }}"}'
    "{{ end }}</tool_call>{{ end }}\n{{ end }}"
)
THINK_TEMPLATE = (
    "{{ range .Messages }}{{ .Role }}: "
    "{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}\n{{ end }}"
)
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
HELLO = [{"role": "user", "content": "hello"}]
_JINJA = "{% for m in messages %}{{ m.content }}{% endfor %}{{ tools }}<think></think>"
_Result = TypeVar("_Result")


def persona(name: str, template: str | None = None, **more: Any) -> PersonaSettings:
    """One made from the only model."""
    return PersonaSettings(name, "small", template=template, **more)


PERSONAS = (
    persona("templated", CHATML),
    persona("caller", TOOLS_TEMPLATE),
    persona("thinker", THINK_TEMPLATE),
    persona("channels", CHATML.replace("im_start", "start").replace("im_end", "end")),
    persona("filler", "{{ .Prompt }}<fill>{{ .Suffix }}"),
    persona(
        "tuned",
        system="Be brief.",
        parameters={"temperature": 0.1, "top_k": 7, "stop": ["END"]},
        messages=({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}),
    ),
)


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.text.splitlines()]

    @property
    def events(self) -> list[Any]:
        """The data of server-sent events, read where it is JSON."""
        found = [
            line.removeprefix("data: ")
            for line in self.text.splitlines()
            if line.startswith("data: ")
        ]
        return [data if data == "[DONE]" else json.loads(data) for data in found]


@dataclass
class Client:
    """Asks the gateway; `engine` is what stands behind it."""

    session: aiohttp.ClientSession
    url: str
    engine: StandInEngine

    async def post(self, path: str, body: Any) -> Answer:
        """A whole answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(self.url + path, data=data) as response:
            return Answer(response.status, response.headers, await response.text())

    async def get(self, path: str) -> Answer:
        """A whole answer."""
        async with self.session.get(self.url + path) as response:
            return Answer(response.status, response.headers, await response.text())

    def asked(self, path: str) -> list[Any]:
        """The bodies of what the engine was asked at `path`."""
        return [one.body for one in self.engine.asked if one.path == path]

    def paths(self) -> list[str]:
        """Where the engine was asked, in order."""
        return [one.path for one in self.engine.asked if one.path != "/health"]


@dataclass
class Lab:
    """What a test changes before it runs."""

    folder: Path
    engine: StandInEngine = field(default_factory=StandInEngine)
    think_inline: bool = False
    context_tokens: int = 4096
    architecture: str = "llama"
    log: io.StringIO = field(default_factory=io.StringIO)
    """The access log, once it has run."""

    def run(self, use: Callable[[Client], Awaitable[_Result]]) -> _Result:
        """Start everything, use it, stop it."""
        return asyncio.run(self._running(use))

    def post(self, path: str, body: Any) -> tuple[Answer, Client]:
        """One request."""

        async def use(client: Client) -> tuple[Answer, Client]:
            return await client.post(path, body), client

        return self.run(use)

    async def _running(self, use: Callable[[Client], Awaitable[_Result]]) -> _Result:
        async with self.engine:
            config = self._config()
            catalogue, backends = Catalogue(config), Backends(config)
            await catalogue.start()
            await backends.start()
            metrics = GatewayMetrics()
            access_log = AccessLog(self.log)
            guard = Guard(
                "here",
                Access("127.0.0.1", ()),
                metrics,
                access_log,
                body_bytes=1 << 20,
                body_s=10.0,
                uploads=UPLOAD_ROUTES,
            )
            services = Services(config, config.listeners[0], catalogue, backends, metrics)
            sockets = bound_sockets("127.0.0.1", 0)
            server = ListenerServer(
                make_application(services, guard, 1 << 20), sockets, config.limits, guard
            )
            await server.start()
            url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
            try:
                async with aiohttp.ClientSession() as session:
                    return await use(Client(session, url, self.engine))
            finally:
                await server.close()
                await backends.close()
                await catalogue.close()
                access_log.close()

    def _config(self) -> Config:
        models_dir = self.folder / "models"
        models_dir.mkdir(exist_ok=True)
        path = models_dir / "small.gguf"
        _small(self.architecture).write_sparse(path)
        return Config(
            listeners=(Listener("127.0.0.1", 11434),),
            instances={
                "live": Instance(
                    "live", self.engine.url, model="small", context_tokens=self.context_tokens
                )
            },
            models={"small": Model("small", path, instances=("live",))},
            personas={one.name: one for one in PERSONAS},
            models_dir=models_dir,
            state_dir=self.folder / "state",
            limits=Limits(connect_s=0.2, wait_s=1.0),
            think_inline=self.think_inline,
        )


def _small(architecture: str) -> GgufMaker:
    maker = GgufMaker()
    maker.string("general.architecture", architecture)
    maker.number(f"{architecture}.context_length", U32, 8192)
    maker.number(f"{architecture}.embedding_length", U32, 8)
    maker.number(f"{architecture}.rope.freq_base", F32, 10000)
    maker.string("tokenizer.chat_template", _JINJA)
    maker.tensor("token_embd.weight", (8, 8))
    return maker
