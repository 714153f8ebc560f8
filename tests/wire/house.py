"""The gateway that clients ask: personas of all kinds, and a Hub to pull from."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.unit.gateway.gateway_process import GatewayProcess, free_ports
from tests.wire.rig import (
    CHAT,
    CHAT_PERSONA,
    EMBED,
    ENDLESS_TOKENS,
    PLAIN_PERSONA,
    SURE_CITIES,
    THINK_PERSONA,
    Store,
    await_cancelled,
    chat_instance,
    embed_instance,
    stand_in_hub,
    tools_persona,
    write_toml,
)

HELLO = [{"role": "user", "content": "Say hi"}]
STORY = "Write a long story about the sea."
OPTIONS = {"temperature": 0, "seed": 1, "num_predict": 8}
LONG = {"temperature": 0, "num_predict": ENDLESS_TOKENS}
WEATHER = "What is the weather in Paris?"
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather for a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
NO_EMBEDDINGS = "This server does not support embeddings. Start it with `--embeddings`"


@dataclass(frozen=True)
class House:
    """A running gateway, and the llama-server behind it."""

    url: str
    engine_url: str
    process: GatewayProcess

    def await_dropped(self, before: int) -> None:
        """Until the gateway has logged one client more that went away, and nothing is generated."""
        await_cancelled(self.engine_url)
        deadline = time.monotonic() + 60
        while self.dropped() <= before:
            assert time.monotonic() < deadline, "no client is known to have gone"
            time.sleep(0.05)

    def dropped(self) -> int:
        """Clients that went away before their answers' ends."""
        return sum(line["status"] == 499 for line in self.process.accesses())


@contextmanager
def running_house(
    store: Store, chat_engine: str, embed_engine: str, folder: Path
) -> Iterator[House]:
    """Personas of all kinds; "own" is the model with the chat template of its file."""
    port = free_ports(1)[0]
    with stand_in_hub(folder / "hub") as hub:
        config = write_toml(
            folder / "gateway.toml",
            models_dir=str(store.folder),
            state_dir=str(folder / "state"),
            hf_endpoint=hub.url,
            listeners=[{"port": port}],
            instances={
                "live": chat_instance(chat_engine, "own"),
                "embed": embed_instance(embed_engine),
            },
            models={
                "own": {"path": str(store.chat), "aliases": ["main"]},
                EMBED: {"path": str(store.embed)},
            },
            personas={
                CHAT: {"from": "own", **CHAT_PERSONA},
                "plain": {"from": "own", **PLAIN_PERSONA},
                "tools": {"from": "own", **tools_persona(*SURE_CITIES)},
                "thinker": {"from": "own", **THINK_PERSONA},
            },
        )
        with GatewayProcess(config) as process:
            yield House(f"http://127.0.0.1:{port}", chat_engine, process)
