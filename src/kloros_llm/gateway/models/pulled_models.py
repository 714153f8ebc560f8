"""The folders in which routers find the models that clients brought: one of links a model.

llama-server takes each folder in its LLAMA_ARG_MODELS_DIR for a model, and its name for the id:
the first of several shards, or else what is no projector, is the model's file, and what has
"mmproj" in its name the projector. It looks there at its start and at GET /models?reload=1.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ..config import Config, Model
from .layers import MODEL
from .model_facts import ModelFacts

# llama-server heeds no folder without a *.gguf directly in it: what is being made is not seen.
_UNFINISHED: Final = ".unfinished"
_NOT_IN_IDS: Final = re.compile(r"[^A-Za-z0-9._-]+")
_MOST_OF_NAME: Final = 100

Links = Mapping[str, Path]
"""A file's name in a model's folder: the file that it leads to."""


def routers_of(config: Config) -> tuple[str, ...]:
    """The instances that serve what the store has beside gateway.toml's models."""
    return tuple(
        instance.name for instance in config.instances.values() if instance.pulled_models_dir
    )


def folders_of(config: Config) -> frozenset[Path]:
    """Where those routers look."""
    return frozenset(
        instance.pulled_models_dir
        for instance in config.instances.values()
        if instance.pulled_models_dir
    )


def router_id(model: Model, facts: ModelFacts) -> str:
    """What routers call it. Other content, under whatever name, has another id: a router that has
    the old one loaded ends it.
    """
    made_of = [str(model.path), *(layer.digest for layer in facts.layers)]
    digest = hashlib.sha256("\0".join(made_of).encode()).hexdigest()
    name = _NOT_IN_IDS.sub("-", model.name)[:_MOST_OF_NAME].strip(".-")
    return f"{name}-{digest[:12]}".lstrip("-")


def links_of(facts: ModelFacts) -> dict[str, Path]:
    """The links that stand for a model's files, under names that llama-server recognises."""
    files = list(zip(facts.layers, facts.paths, strict=True))
    shards = [path for layer, path in files if layer.media_type == MODEL]
    projectors = [path for layer, path in files if layer.media_type != MODEL]
    links = {f"model-{n:05d}-of-{len(shards):05d}.gguf": path for n, path in enumerate(shards, 1)}
    if len(shards) == 1:
        links = {"model.gguf": shards[0]}
    if projectors:
        links["mmproj.gguf"] = projectors[0]
    return links


def keep_folder(folder: Path, wanted: Mapping[str, Links]) -> bool:
    """Have the folder hold these models, by their ids, and no other; True where that changed it.

    A model comes and goes at one stroke. What is no folder of links alone is not the gateway's,
    and stays: it may be somebody's models. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / _UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)
    present = {path.name: links for path in folder.iterdir() if (links := _links_in(path))}
    wrong = [name for name, links in present.items() if links != wanted.get(name)]
    missing = [name for name, links in wanted.items() if links != present.get(name)]
    if not wrong and not missing:
        return False
    unfinished.mkdir()
    for name in wrong:
        (folder / name).rename(unfinished / f"old-{name}")
    for name in missing:
        made = unfinished / name
        made.mkdir()
        for link, target in wanted[name].items():
            (made / link).symlink_to(target)
        made.rename(folder / name)
    shutil.rmtree(unfinished, ignore_errors=True)
    return True


def _links_in(path: Path) -> dict[str, Path] | None:
    """None where it is no folder of links alone."""
    if path.is_symlink():
        return None
    try:
        return {one.name: one.readlink() for one in path.iterdir()}
    except OSError:
        return None
