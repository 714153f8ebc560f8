"""What the recording's server had: the small model under its names, and who serves it.

llama-servers are real, with SmolLM2-135M. The model that embeds is a stand-in as the recording's
was: the same file with `llama.pooling_type` put into its header.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kloros_llm.core.model_files import FileRecord, Record, write_record
from testbed.stand_in_hub import StandInHub
from tests.llama_server import BINARY, MODEL
from tests.unit.gateway.gateway_process import free_ports
from tests.unit.gguf_maker import U32, GgufMaker

CONTEXT_TOKENS = 2048
EMBED_CONTEXT_TOKENS = 4096
_START_S = 180
_U32, _STRING = 4, 8

# What the recording's server had stored (shared data of the project, ollama/store).
# An answer in this form has more than 1500 tokens, whatever the model would like to say.
ENDLESS: dict[str, Any] = {
    "type": "array",
    "items": {"enum": ["the sea is calm and wide"]},
    "minItems": 250,
}
ENDLESS_TOKENS = 1500
PULLED = "hf.co/TestOwner/Tiny-GGUF:Q4_1"
CHAT, EMBED = "smollm2:135m", "smollm2-embed"
CHAT_SHA256 = "941f309b54caaad6747569ba43712bcde44a2be3bae16c3282ff499c37c54af5"
EMBED_SHA256 = "32289686bcd4a27f938978ba59e25a259ee3c114f708059111c6c60463ac3074"
STOP = ["<|im_start|>", "<|im_end|>"]
CHAT_PERSONA: dict[str, Any] = {
    "system": "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    "template": "{{- if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}"
    '{{- range .Messages }}{{- if ne .Role "system" }}<|im_start|>{{ .Role }}\n'
    "{{ .Content }}<|im_end|>\n{{ end }}{{- end }}<|im_start|>assistant\n",
    "parameters": {"num_ctx": 2048, "stop": STOP, "temperature": 0.2, "top_p": 0.9},
    "license": ["Apache License 2.0 (short text of this rig)"],
}
PLAIN_PERSONA: dict[str, Any] = {
    "template": "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n"
    "{{ end }}<|im_start|>assistant\n",
    "parameters": {"stop": STOP},
}
_TOOLS_PERSONA: dict[str, Any] = {
    "template": "{{- if or .System .Tools }}<|im_start|>system\n{{ .System }}{{ if .Tools }}\n"
    'You can call functions. Reply only with <tool_call>{"name": <function>, "arguments": '
    "<args>}</tool_call>.\n<tools>{{ range .Tools }}{{ . }}{{ end }}</tools>{{ end }}<|im_end|>\n"
    '{{ end }}{{- range .Messages }}{{- if eq .Role "user" }}<|im_start|>user\n{{ .Content }}'
    '<|im_end|>\n{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}'
    '{{ if .ToolCalls }}{{ range .ToolCalls }}<tool_call>\n{"name": "{{ .Function.Name }}", '
    '"arguments": {{ .Function.Arguments }}}\n</tool_call>{{ end }}{{ end }}<|im_end|>\n'
    '{{ else if eq .Role "tool" }}<|im_start|>user\n<tool_response>{{ .Content }}'
    "</tool_response><|im_end|>\n{{ end }}{{- end }}<|im_start|>assistant\n",
    "system": "You call tools.",
}
RECORDED_CITIES = ("Rome", "Berlin")
# After the recording's examples the model wavers (0.52 against 0.46 for its first words), so that
# it depends on the CPU what it says; after these it does not (more than 0.98).
SURE_CITIES = ("Rome", "Berlin", "Paris", "Oslo", "Paris", "Rome")
THINK_PERSONA: dict[str, Any] = {
    "template": "{{- range $i, $_ := .Messages }}<|im_start|>{{ .Role }}\n"
    "{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}<|im_end|>\n{{ end }}"
    "<|im_start|>assistant\n{{ if .Think }}<think>{{ end }}",
    "messages": [
        {"role": "user", "content": "What is 2+2?"},
        {"role": "assistant", "content": "<think>Two plus two is four.</think>4"},
        {"role": "user", "content": "What is 3+3?"},
        {"role": "assistant", "content": "<think>Three plus three is six.</think>6"},
    ],
}


def tools_persona(*cities: str) -> dict[str, Any]:
    """The recording's, with one example a city. Its own are RECORDED_CITIES."""
    messages = []
    for city in cities:
        call = {"name": "get_weather", "arguments": {"city": city}}
        asked = {"role": "user", "content": f"What is the weather in {city}?"}
        called = {"role": "assistant", "content": f"<tool_call>{json.dumps(call)}</tool_call>"}
        messages += [asked, called]
    return {**_TOOLS_PERSONA, "messages": messages}


@dataclass(frozen=True)
class Store:
    """The models' folder and the two files in it, known to the store as the recording's were."""

    folder: Path

    @property
    def chat(self) -> Path:
        return self.folder / "chat.gguf"

    @property
    def embed(self) -> Path:
        return self.folder / "embed.gguf"

    def fill(self) -> None:
        """Put the files there.

        The records give the digests of the recording's server, so that all digests that follow
        from them can be compared. Its files hold the same keys and tensors in another order.
        """
        self.folder.mkdir()
        shutil.copyfile(MODEL, self.chat)
        with_pooling(MODEL, self.embed)
        # The order of their times is that of the recording.
        for path, name, sha256, modified_s in (
            (self.chat, CHAT, CHAT_SHA256, 1795351055),
            (self.embed, EMBED, EMBED_SHA256, 1795351193),
        ):
            os.utime(path, (modified_s, modified_s))
            state = path.stat()
            source = f"hf://TestOwner/Recorded/{path.name}@main"
            known = FileRecord(
                path.name,
                "model",
                source,
                None,
                state.st_size,
                sha256,
                True,
                "2026-11-22",
                state.st_mtime_ns,
            )
            write_record(self.folder, Record(name, source, None, (known,)))


def with_pooling(source: Path, target: Path) -> None:
    """Copy a GGUF file, with `llama.pooling_type` 1 (mean) at the head of its metadata.

    What is put in is 64 bytes long, so that the data stays aligned (general.alignment is 32).
    """
    added = _key("llama.pooling_type", _U32) + struct.pack("<I", 1)
    filler = _key("wire.pad", _STRING)
    rest = 64 - len(added) - len(filler) - 8
    added += filler + struct.pack("<Q", rest) + b" " * rest
    assert len(added) == 64
    with source.open("rb") as old, target.open("wb") as new:
        magic, version, tensors, keys = struct.unpack("<4sIQQ", old.read(24))
        assert (magic, version) == (b"GGUF", 3)
        new.write(struct.pack("<4sIQQ", magic, version, tensors, keys + 2) + added)
        shutil.copyfileobj(old, new, 1 << 20)


def _key(name: str, kind: int) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind)


@contextmanager
def llama_server(folder: Path, *options: str | Path) -> Iterator[str]:
    """One that answers; the value is its URL. One thread, and behind everything else."""
    port = free_ports(1)[0]
    url = f"http://127.0.0.1:{port}"
    log_path = folder / f"llama-server-{port}.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [
                *("nice", "-n", "19", BINARY, "--port", str(port), "--threads", "1"),
                *("--offline", "--no-webui", *map(str, options)),
            ],
            env={"HOME": str(folder), "PATH": os.defpath},
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + _START_S
        while not _is_ready(url):
            said = log_path.read_text(errors="replace")[-2000:]
            assert process.poll() is None, f"llama-server ended:\n{said}"
            assert time.monotonic() < deadline, f"llama-server is not ready:\n{said}"
            time.sleep(0.1)
        yield url
    finally:
        # A router ends its children too.
        process.terminate()
        process.wait(30)


def _is_ready(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/health", timeout=5).close()  # noqa: S310 - its own address
    except OSError:
        return False
    return True


def chat_options(store: Store) -> tuple[str | Path, ...]:
    """Of the llama-server that generates; its own samplers are not Ollama's."""
    slots = 2
    tokens = CONTEXT_TOKENS * slots
    own = ("--top-k", "5", "--temp", "0.1", "--repeat-penalty", "1.7")
    return ("-m", store.chat, "-c", str(tokens), "-np", str(slots), *own)


def embed_options(store: Store) -> tuple[str | Path, ...]:
    """Of the one that embeds."""
    return ("-m", store.embed, "-c", str(EMBED_CONTEXT_TOKENS), "-np", "1", "--embeddings")


def chat_instance(url: str, model: str = CHAT) -> dict[str, Any]:
    """The instance of gateway.toml for the llama-server that generates."""
    return {"url": url, "model": model, "context_tokens": CONTEXT_TOKENS, "slots": 2}


def embed_instance(url: str) -> dict[str, Any]:
    """The instance for the one that embeds."""
    return {
        "url": url,
        "model": EMBED,
        "context_tokens": EMBED_CONTEXT_TOKENS,
        "embeddings": True,
    }


def write_toml(path: Path, **members: Any) -> Path:
    """A TOML file; tables as dictionaries, arrays of tables as lists of them.

    JSON's texts, numbers and arrays are TOML's.
    """
    path.write_text("\n".join(_toml(members, "")))
    return path


def _toml(members: Mapping[str, Any], prefix: str) -> Iterator[str]:
    plain = {key: one for key, one in members.items() if not _is_table(one)}
    for key, one in plain.items():
        yield f"{json.dumps(key)} = {json.dumps(one)}"
    for key, one in members.items():
        if key in plain:
            continue
        name = f"{prefix}{json.dumps(key)}"
        for table in one if isinstance(one, list) else [one]:
            yield f"\n[[{name}]]" if isinstance(one, list) else f"\n[{name}]"
            yield from _toml(table, f"{name}.")


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, list) and bool(value) and isinstance(value[0], dict)
    )


def hub_file() -> bytes:
    """A GGUF file of half a MiB for the stand-in Hub: a header, and no model in it."""
    maker = GgufMaker()
    maker.string("general.architecture", "llama")
    maker.number("general.file_type", U32, 3)
    maker.tensor("token_embd.weight", (1 << 20,))
    return maker.file()


@contextmanager
def stand_in_hub(root: Path) -> Iterator[StandInHub]:
    """A Hub with one file to pull, so slow that its progress is told."""
    folder = root / "TestOwner/Tiny-GGUF"
    folder.mkdir(parents=True)
    (folder / "tiny-Q4_1.gguf").write_bytes(hub_file())
    with StandInHub(root) as running:
        running.faults.bytes_per_s = 8 << 20
        yield running


def await_idle(engine_url: str, limit_s: float = 120) -> dict[str, Any]:
    """Until a llama-server generates nothing; its newest request's slot."""
    deadline = time.monotonic() + limit_s
    while any(slot["is_processing"] for slot in _slots(engine_url)):
        assert time.monotonic() < deadline, "it still generates"
        time.sleep(0.05)
    return max(_slots(engine_url), key=lambda slot: int(slot.get("id_task", -1)))


def await_cancelled(engine_url: str) -> None:
    """Until a llama-server generates nothing, without having come to the end of an ENDLESS one."""
    slot = await_idle(engine_url)
    # The prompt and what has been generated.
    assert slot["n_prompt_tokens"] < ENDLESS_TOKENS, "it was generated to its end"


def _slots(engine_url: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{engine_url}/slots", timeout=60) as answer:  # noqa: S310 - its own address
        found: list[dict[str, Any]] = json.load(answer)
    return found
