"""llama-server's options that kloros-llm sets itself, and what a wish may add in `extra`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .findings import Finding, error


@dataclass(frozen=True)
class ManagedOption:
    """An option that kloros-llm renders: its variable (None: it has only flags) and all flags."""

    variable: str | None
    flags: tuple[str, ...]
    instead: str


_FROM_GPUS = "set `gpus`, and `offload`, `gpu_layers`, `split_mode`, `main_gpu` or `tensor_split`"
_LOG_IS_READ = "what lies on a GPU is read from the log, in the journal"
_IN_FRONT = "TLS and paths are for a proxy in front; an instance is asked for its /health plainly"

MANAGED: Mapping[str, ManagedOption] = {
    "model": ManagedOption(
        "LLAMA_ARG_MODEL",
        ("-m", "--model"),
        "set `model`; where its file comes from is said under `gguf_models`",
    ),
    "model-url": ManagedOption(
        "LLAMA_ARG_MODEL_URL", ("-mu", "--model-url"), "give the URL as a source in `gguf_models`"
    ),
    "docker-repo": ManagedOption(
        "LLAMA_ARG_DOCKER_REPO", ("-dr", "--docker-repo"), "give a source in `gguf_models`"
    ),
    "hf-repo": ManagedOption(
        "LLAMA_ARG_HF_REPO",
        ("-hf", "-hfr", "--hf-repo"),
        "give an hf:// source in `gguf_models`",
    ),
    "hf-file": ManagedOption(
        "LLAMA_ARG_HF_FILE", ("-hff", "--hf-file"), "give an hf:// source in `gguf_models`"
    ),
    "alias": ManagedOption(
        "LLAMA_ARG_ALIAS", ("-a", "--alias"), "name the model and its `aliases` in `gguf_models`"
    ),
    "host": ManagedOption("LLAMA_ARG_HOST", ("--host",), "set `host`"),
    "port": ManagedOption("LLAMA_ARG_PORT", ("--port",), "set `port`"),
    "context": ManagedOption(
        "LLAMA_ARG_CTX_SIZE", ("-c", "--ctx-size"), "set `context`, in tokens a slot"
    ),
    "parallel": ManagedOption("LLAMA_ARG_N_PARALLEL", ("-np", "--parallel"), "set `parallel`"),
    "kv-unified": ManagedOption(
        "LLAMA_ARG_KV_UNIFIED",
        ("-kvu", "--kv-unified", "-no-kvu", "--no-kv-unified"),
        "every slot has the `context` it was given",
    ),
    "kv-unified-per-slot": ManagedOption(
        "LLAMA_ARG_KV_UNIFIED_PER_SLOT", ("--kv-unified-per-slot",), "set `context`"
    ),
    "ssl-key-file": ManagedOption("LLAMA_ARG_SSL_KEY_FILE", ("--ssl-key-file",), _IN_FRONT),
    "ssl-cert-file": ManagedOption("LLAMA_ARG_SSL_CERT_FILE", ("--ssl-cert-file",), _IN_FRONT),
    "api-prefix": ManagedOption("LLAMA_ARG_API_PREFIX", ("--api-prefix",), _IN_FRONT),
    "device": ManagedOption("LLAMA_ARG_DEVICE", ("-dev", "--device"), _FROM_GPUS),
    "gpu-layers": ManagedOption(
        "LLAMA_ARG_N_GPU_LAYERS", ("-ngl", "--gpu-layers", "--n-gpu-layers"), _FROM_GPUS
    ),
    "split-mode": ManagedOption("LLAMA_ARG_SPLIT_MODE", ("-sm", "--split-mode"), _FROM_GPUS),
    "main-gpu": ManagedOption("LLAMA_ARG_MAIN_GPU", ("-mg", "--main-gpu"), _FROM_GPUS),
    "tensor-split": ManagedOption("LLAMA_ARG_TENSOR_SPLIT", ("-ts", "--tensor-split"), _FROM_GPUS),
    "cpu-moe": ManagedOption(
        "LLAMA_ARG_CPU_MOE", ("-cmoe", "--cpu-moe"), "set `cpu_moe_layers`, or `offload: auto`"
    ),
    "n-cpu-moe": ManagedOption(
        "LLAMA_ARG_N_CPU_MOE",
        ("-ncmoe", "--n-cpu-moe"),
        "set `cpu_moe_layers`, or `offload: auto`",
    ),
    "log-jsonl": ManagedOption(
        "LLAMA_ARG_LOG_JSONL", ("--log-jsonl", "--no-log-jsonl"), _LOG_IS_READ
    ),
    "log-verbosity": ManagedOption(
        "LLAMA_ARG_LOG_VERBOSITY",
        ("-lv", "--verbosity", "--log-verbosity"),
        _LOG_IS_READ,
    ),
    "log-verbose": ManagedOption(None, ("-v", "--verbose", "--log-verbose"), _LOG_IS_READ),
    "log-disable": ManagedOption(None, ("--log-disable",), _LOG_IS_READ),
    "fit": ManagedOption("LLAMA_ARG_FIT", ("-fit", "--fit"), _FROM_GPUS),
    "kv-cache-k": ManagedOption(
        "LLAMA_ARG_CACHE_TYPE_K", ("-ctk", "--cache-type-k"), "set `kv_cache`"
    ),
    "kv-cache-v": ManagedOption(
        "LLAMA_ARG_CACHE_TYPE_V", ("-ctv", "--cache-type-v"), "set `kv_cache`"
    ),
    "threads": ManagedOption("LLAMA_ARG_THREADS", ("-t", "--threads"), "set `threads`"),
    "mmproj": ManagedOption(
        "LLAMA_ARG_MMPROJ", ("-mm", "--mmproj"), "give the model its `mmproj` in `gguf_models`"
    ),
    "mmproj-url": ManagedOption(
        "LLAMA_ARG_MMPROJ_URL",
        ("-mmu", "--mmproj-url"),
        "give the model its `mmproj` in `gguf_models`",
    ),
    "draft-model": ManagedOption(
        "LLAMA_ARG_SPEC_DRAFT_MODEL",
        ("-md", "--model-draft", "--spec-draft-model"),
        "set `draft_model`",
    ),
    "draft-hf-repo": ManagedOption(
        "LLAMA_ARG_SPEC_DRAFT_HF_REPO",
        ("-hfd", "-hfrd", "--hf-repo-draft", "--spec-draft-hf"),
        "set `draft_model`, and give it an hf:// source in `gguf_models`",
    ),
    "lora": ManagedOption(None, ("--lora",), "set `lora`"),
    "lora-scaled": ManagedOption(None, ("--lora-scaled",), "set `lora`"),
    "embeddings": ManagedOption(
        "LLAMA_ARG_EMBEDDINGS", ("--embedding", "--embeddings"), "set `embeddings`"
    ),
    "rerank": ManagedOption("LLAMA_ARG_RERANKING", ("--rerank", "--reranking"), "set `rerank`"),
    "metrics": ManagedOption("LLAMA_ARG_ENDPOINT_METRICS", ("--metrics",), "set `metrics`"),
    "api-key-file": ManagedOption(
        "LLAMA_ARG_API_KEY_FILE", ("--api-key-file",), "set `api_key`; the unit passes its file"
    ),
}
"""What kloros-llm decides, by the option's name here; any of these in `extra` is an error."""

_SECRETS: Mapping[str, str] = {
    "api-key": "set `api_key`",
    "llama-api-key": "set `api_key`",
    "llama-arg-api-key": "set `api_key`",
    "hf-token": "set `gguf_models_hf_token`",
    "hft": "set `gguf_models_hf_token`",
}
"""Options and variables whose value is a secret, with what to set instead."""

_PRINT_AND_EXIT = frozenset(
    {"h", "help", "usage", "version", "cl", "cache-list", "completion-bash", "list-devices"}
)
_LONG_NAME = re.compile(r"[a-z][a-z0-9.]*(-[a-z0-9.]+)*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _bare(spelling: str) -> str:
    """A flag or variable in any spelling, for comparison (llama-server takes `_` for `-` too)."""
    return spelling.lstrip("-").lower().replace("_", "-")


_MANAGED_SPELLINGS: Mapping[str, ManagedOption] = {
    _bare(spelling): option
    for option in MANAGED.values()
    for spelling in (*option.flags, option.variable)
    if spelling
}
MANAGED_BY_VARIABLE: Mapping[str, ManagedOption] = {
    option.variable: option for option in MANAGED.values() if option.variable
}


def extra_findings(key_prefix: str, extra: Mapping[str, object]) -> list[Finding]:
    """What is wrong with an instance's `extra`, whatever the version of llama.cpp.

    `key_prefix` is the inventory path of `extra`, such as `llama_instances.live.extra`.
    """
    findings: list[Finding] = []
    for name, value in extra.items():
        key = f"{key_prefix}.{name}"
        if refused := _name_finding(key, name):
            findings.append(refused)
            continue
        items = value if isinstance(value, list) else [value]
        if not items:
            findings.append(error(key, "an empty list", "at least one value", "leave the key out"))
        for item in items:
            if refused := _value_finding(key, item, inside_list=isinstance(value, list)):
                findings.append(refused)
    return findings


def _name_finding(key: str, name: object) -> Finding | None:
    needed = "a long llama-server option without its dashes, such as `flash-attn`"
    if not isinstance(name, str):
        return error(key, f"{_yaml_type(name)} as the key", needed, "write the option's name")
    if refused := _reserved_finding(key, name):
        return refused
    if name.startswith("-"):
        bare = name.lstrip("-")
        return error(key, "the name starts with a dash", needed, f"write `{bare}` instead")
    if not _LONG_NAME.fullmatch(name):
        cure = "see `llama-server --help` for its long form"
        if name.islower() and _LONG_NAME.fullmatch(_bare(name)):
            cure = f"write `{_bare(name)}` instead"
        return error(key, f"{name!r} is no option's name", needed, cure)
    return None


def _reserved_finding(key: str, name: str) -> Finding | None:
    """Why an option, in whatever spelling, is not for `extra`."""
    bare = _bare(name)
    for spelling in (bare, bare.removeprefix("no-")):
        if spelling in _SECRETS:
            return error(
                key,
                "a secret, which would show in the env file and in the process list",
                "secrets by their own variable only",
                f"take it out of `extra`; {_SECRETS[spelling]}",
            )
        if spelling in _MANAGED_SPELLINGS:
            managed = _MANAGED_SPELLINGS[spelling]
            return error(
                key,
                f"repeats an option that kloros-llm sets itself ({title(managed)})",
                "options in `extra` that nothing else sets",
                f"take it out of `extra`; {managed.instead}",
            )
    if bare in _PRINT_AND_EXIT:
        return error(
            key,
            "makes llama-server print something and exit",
            "options of a server that runs",
            "take it out of `extra`",
        )
    return None


def _value_finding(key: str, value: object, *, inside_list: bool) -> Finding | None:
    needed = "a string, a number, true, false, or a list of strings and numbers"
    if not isinstance(value, str | int | float) or (inside_list and isinstance(value, bool)):
        where = "in the list" if inside_list else "as its value"
        cure = "give one of these, or leave the key out"
        if isinstance(value, Mapping):
            cure = "write JSON as one quoted string"
        return error(key, f"{_yaml_type(value)} {where}", needed, cure)
    if isinstance(value, str) and _CONTROL.search(value):
        return error(
            key,
            "a line break or another control character",
            "one line of text, which an env file can carry",
            "put the text into a file and use the option that reads one, such as "
            "`chat-template-file` or `grammar-file`",
        )
    return None


def _yaml_type(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return type(value).__name__


def title(managed: ManagedOption) -> str:
    return ", ".join((*managed.flags, *([managed.variable] if managed.variable else [])))
