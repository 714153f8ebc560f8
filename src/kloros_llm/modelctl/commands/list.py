"""`modelctl list`: the models that are here."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from ...core.model_catalogue import Model
from ...core.model_users import instance_names
from ..exit_codes import Exit
from ..host import Host
from ..model_facts import local_facts
from ..output import emit, say, size_text, table, tell


def run(arguments: Namespace) -> int:
    host = Host(arguments)
    models = [facts(host, model) for model in host.catalogue.models()]
    unrecorded = [str(path) for path in host.catalogue.unrecorded()]
    if arguments.json:
        emit({"models_dir": str(host.models_dir), "models": models, "unrecorded": unrecorded})
        return Exit.OK
    heading = ["name", "aliases", "size", "quantisation", "version", "used by"]
    rows = [
        [
            model["name"],
            ", ".join(model["aliases"]) or None,
            size_text(model["size_bytes"]),
            model["quantisation"],
            f"{model['version']} DAMAGED" if model["damaged"] else model["version"],
            ", ".join(model["used_by"]) or None,
        ]
        for model in models
    ]
    if rows:
        say(table(heading, rows, right="size"))
    else:
        tell(f"no models in {host.models_dir}")
    for path in unrecorded:
        tell(f"{path} was not put there by this project (`modelctl pull file:...` takes it in)")
    return Exit.OK


def facts(host: Host, model: Model) -> dict[str, Any]:
    """A model as `modelctl list --json` tells of it."""
    active = model.in_force
    paths = active.paths if active else [model.path]
    users = host.users_but_processes.of(paths)
    header = local_facts(model.path)
    return {
        "name": model.name,
        "aliases": list(model.aliases),
        "file": model.file,
        "path": str(model.path),
        "paths": [str(path) for path in paths],
        "size_bytes": active.size_bytes if active else None,
        "quantisation": header.get("quantisation"),
        "architecture": header.get("architecture"),
        "version": model.active,
        "previous": model.previous,
        "versions": [version.id for version in model.versions],
        "revision": active.revision if active else None,
        "source": active.source if active else None,
        "verified": active.verified if active else False,
        "damaged": active.damaged if active else False,
        "used_by": instance_names(users),
    }
