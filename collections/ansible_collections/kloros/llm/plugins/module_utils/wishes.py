"""The inventory's wishes: which keys they may have, and what is wrong with those that they have.

The tables below are the one description of a model's and an instance's keys: they check the
inventory, fill in defaults, and are what the README's example shows.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from .findings import Finding, error
from .llama_options import extra_findings
from .model_files import Companion, wanted_files
from .model_source import SourceError, parse_source

KV_CACHE_TYPES: Final = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")

_MODEL_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]*\Z")
_INSTANCE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,40}\Z")
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*\.gguf\Z")
_SHA256: Final = re.compile(r"[0-9a-f]{64}\Z")
_GPU_UUID: Final = re.compile(r"GPU-[0-9A-Za-z-]+\Z")
_HOST: Final = re.compile(r"[0-9A-Za-z.:-]+\Z")


@dataclass(frozen=True)
class Key:
    """One key of a wish: what it accepts in words, the test for it, and its default."""

    accepts: str
    test: Callable[[Any], bool]
    default: Any = None
    required: bool = False


def _is_integer(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and value.isprintable()


def _matches(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and pattern.match(value) is not None


def _is_list_of(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        return (
            isinstance(value, Sequence)
            and not isinstance(value, str)
            and all(test(item) for item in value)
        )

    return check


def _is_gpu(value: Any) -> bool:
    return _is_integer(value, 0, 63) or _matches(_GPU_UUID)(value)


def _names_gpu(value: Any) -> bool:
    """A GPU, or its index as text, which is what the command line makes of a number."""
    return _is_gpu(value) or (
        isinstance(value, str)
        and value.isdecimal()
        and value == str(int(value))
        and int(value) < 64
    )


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e6


def _is_share(value: Any) -> bool:
    return _is_rate(value) and value > 0


def _is_context(value: Any) -> bool:
    if _is_integer(value, 256, 2**24):
        return True
    return (
        isinstance(value, Mapping)
        and {"want"} <= set(value) <= {"want", "min"}
        and all(_is_integer(tokens, 256, 2**24) for tokens in value.values())
        and value.get("min", value["want"]) <= value["want"]
    )


def _is_lora(value: Any) -> bool:
    if isinstance(value, str):
        return True
    return (
        isinstance(value, Mapping)
        and {"model"} <= set(value) <= {"model", "scale"}
        and isinstance(value["model"], str)
        and isinstance(value.get("scale", 1.0), int | float)
        and not isinstance(value.get("scale", 1.0), bool)
    )


def _is_companion(value: Any) -> bool:
    if isinstance(value, str):
        return _is_text(value)
    return (
        isinstance(value, Mapping)
        and {"source"} <= set(value) <= {"source", "sha256", "file"}
        and _is_text(value["source"])
        and (value.get("sha256") is None or _matches(_SHA256)(value["sha256"]))
        and (value.get("file") is None or _matches(_FILE_NAME)(value["file"]))
    )


_COMPANION: Final = "a source, or {source: …, sha256: …, file: …}"

MODEL_KEYS: Final[Mapping[str, Key]] = {
    "source": Key(
        "hf://owner/repository/file.gguf[@revision], https://… or file:/absolute/path",
        _is_text,
        required=True,
    ),
    "sha256": Key(
        "64 lower-case hexadecimal digits, or a list of them, one for each shard",
        lambda v: _matches(_SHA256)(v) or (bool(v) and _is_list_of(_matches(_SHA256))(v)),
    ),
    "aliases": Key(
        "a list of further names that clients use", _is_list_of(_matches(_MODEL_NAME)), []
    ),
    "file": Key("a file name ending in .gguf, without a folder", _matches(_FILE_NAME)),
    "mmproj": Key(f"the projector of a model that sees or hears: {_COMPANION}", _is_companion),
    "draft": Key(f"its draft model, for speculative decoding: {_COMPANION}", _is_companion),
    "lora": Key(f"its LoRA adapters, a list, each {_COMPANION}", _is_list_of(_is_companion), []),
}

INSTANCE_KEYS: Final[Mapping[str, Key]] = {
    "model": Key("the name of an entry of gguf_models", _is_text, required=True),
    "port": Key("an integer from 1 to 65535", lambda v: _is_integer(v, 1, 65535), required=True),
    "gpus": Key("a list of GPU indices or UUIDs; [] is the CPU", _is_list_of(_is_gpu), []),
    "host": Key("an address to listen on", _matches(_HOST)),
    "context": Key(
        "tokens a slot: an integer from 256, or {want: N, min: M} with M not above N", _is_context
    ),
    "parallel": Key(
        "the number of slots, an integer from 1 to 256", lambda v: _is_integer(v, 1, 256)
    ),
    "kv_cache": Key(
        f"a list of KV cache types, best first, out of: {', '.join(KV_CACHE_TYPES)}",
        lambda v: bool(v) and _is_list_of(lambda item: item in KV_CACHE_TYPES)(v),
        ["f16"],
    ),
    "modes": Key("a list of the modes that the instance serves", _is_list_of(_is_text), []),
    "fallback": Key("the name of the instance that serves while this one is down", _is_text),
    "offload": Key(
        "full (the whole model on the GPUs, or not at all) or auto (as much as fits)",
        lambda v: v in ("full", "auto"),
        "full",
    ),
    "gpu_layers": Key(
        "a number of layers on the GPUs; without it all of them, and with offload: auto as many as "
        "fit",
        lambda v: _is_integer(v, 0, 1000),
    ),
    "cpu_moe_layers": Key(
        "the number of layers whose experts stay on the CPU, where the plan is not to choose",
        lambda v: _is_integer(v, 0, 1000),
    ),
    "split_mode": Key(
        "how a model lies on several GPUs: layer, row, tensor or none",
        lambda v: v in ("layer", "row", "tensor", "none"),
    ),
    "main_gpu": Key("one of the instance's gpus, by its index or UUID", _is_gpu),
    "tensor_split": Key(
        "the GPUs' shares of the model, one number for each of gpus, e.g. [3, 2]",
        _is_list_of(_is_share),
        [],
    ),
    "min_tokens_per_s": Key(
        "tokens a second that the instance must reach, 0 for any rate", _is_rate
    ),
    "threads": Key(
        "the number of CPU threads, an integer from 1", lambda v: _is_integer(v, 1, 1024)
    ),
    "draft_model": Key("the name of an entry of gguf_models", _is_text),
    "lora": Key(
        "a list of entries of gguf_models, each a name or {model: name, scale: number}",
        _is_list_of(_is_lora),
        [],
    ),
    "embeddings": Key("true or false", _is_boolean, False),
    "rerank": Key("true or false", _is_boolean, False),
    "metrics": Key("true or false", _is_boolean, True),
    "api_key": Key(
        "a secret of at least 16 printable ASCII characters, best from a vault",
        lambda v: _is_text(v) and v.isascii(),
    ),
    "extra": Key(
        "a mapping of llama-server's long option names to values",
        lambda v: isinstance(v, Mapping),
        {},
    ),
    "alternatives": Key(
        "a list of mappings, each with keys that replace the wish's own where it cannot be met",
        _is_list_of(lambda item: isinstance(item, Mapping) and bool(item)),
        [],
    ),
}

# An alternative is the same instance for its clients.
_FIXED_IN_ALTERNATIVES: Final = (
    "alternatives",
    "api_key",
    "host",
    "port",
    "modes",
    "metrics",
    "fallback",
)

# How the model lies on the wish's own GPUs says nothing of others.
_OF_THE_GPUS: Final = ("gpu_layers", "cpu_moe_layers", "split_mode", "main_gpu", "tensor_split")


def _shown(value: Any) -> str:
    """A value for a message; of a container only the kind, since it may hold a secret."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


_PATH: Final = Key(
    "an absolute path of letters, digits and . _ + - / (systemd reads others in its own way)",
    _matches(re.compile(r"(/[A-Za-z0-9._+-]+)+\Z")),
)
_SHA256_OR_NONE: Final = Key(
    "64 hexadecimal digits", lambda value: value == "" or _matches(_SHA256)(value)
)

# Settings of the roles whose form their type alone does not say, by variable.
SETTING_KEYS: Final[Mapping[str, Key]] = {
    "kloros_llm_user": Key(
        "an account name of lower-case letters, digits, _ and -",
        _matches(re.compile(r"[a-z_][a-z0-9_-]{0,31}\Z")),
    ),
    "llama_cpp_version": Key(
        "a tag or a commit, of letters, digits and . _ + - (it names the release's folder)",
        _matches(re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,80}\Z")),
    ),
    "llama_cpp_archive_sha256": _SHA256_OR_NONE,
    "llama_cpp_package_sha256": _SHA256_OR_NONE,
    "llama_cpp_dir": _PATH,
    "llama_cpp_cache_dir": _PATH,
    "llama_cpp_cuda_version": Key(
        "a version of CUDA such as 12.8, or nothing",
        lambda value: value == "" or _matches(re.compile(r"\d{2}\.\d\Z"))(value),
    ),
    "llama_cpp_cuda_toolkit": Key(
        "auto, system, distribution, pypi, redist, or the absolute path of a toolkit",
        lambda value: (
            value in ("auto", "system", "distribution", "pypi", "redist") or _PATH.test(value)
        ),
    ),
    "llama_cpp_cuda_redist_url": Key(
        "a URL (https://, http://) or the absolute path of a folder on the host",
        lambda value: _matches(re.compile(r"https?://\S+\Z"))(value) or _PATH.test(value),
    ),
    "llama_cpp_jobs": Key("a number from 0 (automatic)", lambda v: _is_integer(v, 0, 4096)),
    "llama_cpp_memory_per_job_mib": Key("MiB, from 64", lambda v: _is_integer(v, 64, 2**20)),
    "gpu_lockout": Key("a list of GPU indices or UUIDs", _is_list_of(_names_gpu)),
    "preflight_gpu_reserve_mib": Key(
        "a mapping of GPU indices or UUIDs to MiB",
        lambda v: (
            isinstance(v, Mapping)
            and all(_names_gpu(gpu) and _is_integer(mib, 0, 2**24) for gpu, mib in v.items())
        ),
    ),
    "preflight_gpu_reserve_default_mib": Key("MiB, from 0", lambda v: _is_integer(v, 0, 2**24)),
    "preflight_memory_reserve_mib": Key("MiB, from 0", lambda v: _is_integer(v, 0, 2**30)),
    "gguf_models_dir": _PATH,
    "llama_instances_host": INSTANCE_KEYS["host"],
    "llama_instances_context": INSTANCE_KEYS["context"],
    "llama_instances_parallel": INSTANCE_KEYS["parallel"],
    "llama_instances_min_tokens_per_s": INSTANCE_KEYS["min_tokens_per_s"],
}


def check_settings(settings: Mapping[str, Any]) -> list[Finding]:
    """Check settings of the roles, variable to value, by the table above."""
    return [
        error(name, _shown(value), SETTING_KEYS[name].accepts, "correct the value")
        for name, value in settings.items()
        if not SETTING_KEYS[name].test(value)
    ]


def key_findings(
    path: str, wish: Mapping[str, Any], keys: Mapping[str, Key], *, separator: str = "."
) -> list[Finding]:
    """Check a wish by its table; `path` is its own place in the inventory."""
    found: list[Finding] = []
    for name, value in wish.items():
        key = keys.get(name)
        if key is None:
            near = difflib.get_close_matches(str(name), keys, n=1)
            found.append(
                error(
                    f"{path}{separator}{name}",
                    "there is no such key",
                    f"one of: {', '.join(keys)}",
                    f"write {near[0]!r} if that was meant" if near else "remove or rename it",
                )
            )
        elif value is not None and not key.test(value):
            shown = "a value of another form" if name == "api_key" else _shown(value)
            found.append(error(f"{path}{separator}{name}", shown, key.accepts, "correct the value"))
    found.extend(
        error(f"{path}{separator}{name}", "the key is missing", key.accepts, "add it")
        for name, key in keys.items()
        if key.required and wish.get(name) is None
    )
    return found


def with_defaults(wish: Mapping[str, Any], keys: Mapping[str, Key]) -> dict[str, Any]:
    """The wish with a value for every key."""
    return {
        name: key.default if wish.get(name) is None else wish[name] for name, key in keys.items()
    }


def repeated(pairs: Iterable[tuple[Any, str]], what: str, cure: str) -> list[Finding]:
    """A finding for every value that a later place takes again; pairs are (value, place)."""
    first: dict[Any, str] = {}
    found = []
    for value, place in pairs:
        if value in first:
            found.append(
                error(place, f"{value!r} is taken by {first[value]}", f"{what} of its own", cure)
            )
        else:
            first[value] = place
    return found


def check_models(raw: Any) -> tuple[dict[str, dict[str, Any]], list[Finding]]:
    """Check `gguf_models`.

    Returns the models with defaults filled in and the file name settled, by name, and what is
    wrong; a model with findings of its own is left out.
    """
    if not isinstance(raw, Mapping):
        form = "a mapping of model names to {source: …}"
        return {}, [error("gguf_models", _shown(raw), form, "correct the inventory")]
    models: dict[str, dict[str, Any]] = {}
    found: list[Finding] = []
    for name, wish in raw.items():
        path = f"gguf_models.{name}"
        if not _matches(_MODEL_NAME)(name):
            form = "letters, digits and _ . : / - (first a letter, digit or _)"
            found.append(error(path, f"the name {name!r}", form, "rename the model"))
            continue
        if not isinstance(wish, Mapping):
            found.append(error(path, _shown(wish), "a mapping with a source", "write {source: …}"))
            continue
        own = key_findings(path, wish, MODEL_KEYS)
        model = with_defaults(wish, MODEL_KEYS)
        if not own:
            own += _settle_files(path, model)
        found.extend(own)
        if not own:
            models[name] = model
    found += repeated(
        [
            (file["file"], f"gguf_models.{name}.{_KEY_OF_ROLE[file['role']]}")
            for name, model in models.items()
            for file in model["files"]
        ],
        "a file",
        "give one of the two another name with the key file",
    )
    names = [(name, f"gguf_models.{name}") for name in models]
    aliases = [
        (alias, f"gguf_models.{name}.aliases")
        for name, model in models.items()
        for alias in model["aliases"]
    ]
    found += repeated(names + aliases, "a name", "drop the name in one of the two places")
    return models, found


# Where a file's name comes from, by what it is to its model.
_KEY_OF_ROLE: Final = {"model": "file", "mmproj": "mmproj", "draft": "draft", "lora": "lora"}


def _settle_files(path: str, model: dict[str, Any]) -> list[Finding]:
    """Give the model its `file` and its `files`; what is wrong with them."""
    sha256 = model["sha256"] or []
    try:
        source = parse_source(model["source"])
        files = wanted_files(
            source,
            model["file"],
            [sha256] if isinstance(sha256, str) else sha256,
            mmproj=_companion(model["mmproj"]) if model["mmproj"] else None,
            draft=_companion(model["draft"]) if model["draft"] else None,
            lora=[_companion(adapter) for adapter in model["lora"]],
        )
    except SourceError as problem:
        form = MODEL_KEYS["source"].accepts
        return [error(f"{path}.source", str(problem), form, "correct the source")]
    model["file"] = files[0].file
    model["files"] = [
        {"file": file.file, "role": file.role, "source": str(file.source), "sha256": file.sha256}
        for file in files
    ]
    return [
        error(
            f"{path}.{_KEY_OF_ROLE[file.role]}",
            f"the file would be called {file.file!r}",
            MODEL_KEYS["file"].accepts,
            "give the key file",
        )
        for file in files
        if not _matches(_FILE_NAME)(file.file)
    ]


def _companion(wish: str | Mapping[str, Any]) -> Companion:
    """Raises SourceError."""
    if isinstance(wish, str):
        return Companion(parse_source(wish))
    return Companion(parse_source(wish["source"]), wish.get("sha256"), wish.get("file"))


def model_names(wish: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every (key, model name) by which an instance asks for a model."""
    asked = [("model", wish["model"])]
    if wish["draft_model"]:
        asked.append(("draft_model", wish["draft_model"]))
    for item in wish["lora"]:
        asked.append(("lora", item if isinstance(item, str) else item["model"]))
    return asked


def instance_name_findings(path: str, name: Any) -> list[Finding]:
    """Whether an instance can be called that; `path` is its place in the inventory."""
    if _matches(_INSTANCE_NAME)(name):
        return []
    form = "lower-case letters, digits, _ and - (at most 41): it names a systemd unit"
    return [error(path, f"the name {name!r}", form, "rename the instance")]


def check_instances(
    raw: Any, model_names: Iterable[str]
) -> tuple[dict[str, dict[str, Any]], list[Finding]]:
    """Check `llama_instances` against the names of `gguf_models`.

    Returns the instances with defaults filled in, by name, and what is wrong; an instance with
    findings of its own is left out.
    """
    if not isinstance(raw, Mapping):
        form = "a mapping of instance names to {model: …, port: …}"
        return {}, [error("llama_instances", _shown(raw), form, "correct the inventory")]
    known = list(model_names)
    instances: dict[str, dict[str, Any]] = {}
    found: list[Finding] = []
    for name, wish in raw.items():
        path = f"llama_instances.{name}"
        if unfit := instance_name_findings(path, name):
            found += unfit
            continue
        if not isinstance(wish, Mapping):
            form = "a mapping with model and port"
            found.append(error(path, _shown(wish), form, "write {model: …, port: …}"))
            continue
        own = key_findings(path, wish, INSTANCE_KEYS)
        instance = with_defaults(wish, INSTANCE_KEYS)
        if not own:
            own += _instance_findings(path, instance, known)
            for number, changes in enumerate(instance["alternatives"]):
                own += _alternative_findings(
                    f"{path}.alternatives[{number}]", instance, changes, known
                )
        found.extend(own)
        if not own:
            instances[name] = instance
    found += repeated(
        [(wish["port"], f"llama_instances.{name}.port") for name, wish in instances.items()],
        "a port",
        "give one of the two another port",
    )
    return instances, found


def with_alternative(wish: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The wish as an alternative has it: with its changes, and without alternatives.

    A null is a change where it is what the key has by default (no draft model, all layers); any
    other key with a null is as if it were not given.
    """
    merged = {name: value for name, value in wish.items() if name != "alternatives"}
    given = {
        name: value
        for name, value in changes.items()
        if value is not None or _may_be_null(INSTANCE_KEYS[name])
    }
    if "gpus" in given:
        merged |= {name: INSTANCE_KEYS[name].default for name in _OF_THE_GPUS}
    return {**merged, **given}


def _may_be_null(key: Key) -> bool:
    return key.default is None and not key.required


def _alternative_findings(
    path: str, instance: Mapping[str, Any], changes: Mapping[str, Any], known: list[str]
) -> list[Finding]:
    """What is wrong with an alternative; it may change all that its clients do not see."""
    keys = {
        name: replace(key, required=False)
        for name, key in INSTANCE_KEYS.items()
        if name not in _FIXED_IN_ALTERNATIVES
    }
    found = key_findings(path, changes, keys)
    return found or _instance_findings(path, with_alternative(instance, changes), known)


def no_model(path: str, model: str, known: Sequence[str]) -> Finding:
    """The finding that `gguf_models`, whose usable names are `known`, has no such model."""
    near = difflib.get_close_matches(model, known, n=1)
    return error(
        path,
        f"there is no model {model!r}",
        f"one of gguf_models: {', '.join(known) or '(none is usable)'}",
        f"write {near[0]!r} if that was meant" if near else "add it to gguf_models",
    )


def _instance_findings(path: str, wish: Mapping[str, Any], known: list[str]) -> list[Finding]:
    found: list[Finding] = []
    for key, model in model_names(wish):
        if model not in known:
            found.append(no_model(f"{path}.{key}", model, known))
    if wish["tensor_split"] and len(wish["tensor_split"]) != len(wish["gpus"]):
        shown = f"{len(wish['tensor_split'])} shares for {len(wish['gpus'])} GPUs"
        cure = "give one share a GPU, or leave it to their free memory"
        found.append(error(f"{path}.tensor_split", shown, "one share for each GPU", cure))
    if wish["embeddings"] and wish["rerank"]:
        one = "one instance for each"
        found.append(
            error(f"{path}.rerank", "embeddings is on too", one, "turn one of the two off")
        )
    if wish["api_key"] and len(wish["api_key"]) < 16:
        form = INSTANCE_KEYS["api_key"].accepts
        found.append(error(f"{path}.api_key", "a shorter one", form, "use a longer secret"))
    found += extra_findings(f"{path}.extra", wish["extra"])
    return found
