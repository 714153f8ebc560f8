"""`modelctl show`: what a model is."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from ...core.gguf_facts import model_facts
from ...core.gguf_header import GgufHeader
from ...core.model_catalogue import Model
from ...core.model_files import Record, read_record
from ..exit_codes import Exit
from ..host import Host
from ..lookup import Place, place_of, read
from ..model_facts import context_text, value_data, value_text
from ..output import emit, fields, say, size_text, table


def run(arguments: Namespace) -> int:
    host = Host(arguments)
    place = place_of(host, arguments.what)
    model = read(host, place, arguments)
    header = model.header
    facts = model_facts(model)
    record = read_record(place.path) if place.path else None
    if arguments.json:
        emit(_data(place, header, facts, record, arguments))
        return Exit.OK
    say(fields(_pairs(place, facts, record)))
    if place.found:
        say(["", *_version_lines(place.found.model)])
    if arguments.metadata:
        say(["", *fields([(key, value_text(value)) for key, value in header.metadata.items()])])
    if arguments.tensors:
        rows = [[one.name, one.type, _sizes(one.shape), one.size_bytes] for one in header.tensors]
        say(["", *table(["tensor", "type", "shape", "bytes"], rows, right="bytes")])
    return Exit.OK


def _pairs(place: Place, facts: dict[str, Any], record: Record | None) -> list[tuple[str, object]]:
    shape = facts["shape"] or {}
    layers = sum(count for _, count in shape.get("layers", []))
    aliases = place.found.model.aliases if place.found else ()
    return [
        ("name", place.name),
        ("aliases", ", ".join(aliases) or None),
        ("title", facts["name"]),
        ("kind", facts["kind"] if facts["kind"] != "model" else None),
        ("architecture", facts["architecture"]),
        ("parameters", f"{facts['parameters'] / 1e9:.3g} billion"),
        ("quantisation", facts["quantisation"]),
        ("size", size_text(facts["size_bytes"])),
        ("files", len(facts["files"]) if len(facts["files"]) > 1 else None),
        ("layers", layers or None),
        ("embedding", shape.get("embedding_length")),
        ("vocabulary", facts["vocabulary"]),
        ("trained context", context_text(facts["context_trained"])),
        ("sliding window", context_text(shape.get("sliding_window"))),
        ("chat template", "yes" if facts["chat_template"] else "none"),
        ("note", facts["shape_detail"] or None),
        ("path" if place.path else "source", str(place)),
        ("from", record.source if record else None),
        ("revision", record.revision if record else facts["revision"]),
        ("sha256", record.sha256 if record else None),
        ("verified", _proof(record) if record else None),
    ]


def _proof(record: Record) -> str:
    if record.damaged:
        return "DAMAGED: its bytes are not those that were recorded; pull it again"
    if record.verified:
        return f"against its source's digest, {record.verified_at}"
    return f"no; its source states no digest (read whole {record.verified_at})"


def _version_lines(model: Model) -> list[str]:
    rows = [
        [
            version.id,
            "active" if version.id == model.active else _was(version.id, model),
            size_text(version.size_bytes),
            version.revision,
            version.added_at,
        ]
        for version in model.versions
    ]
    return table(["version", "", "size", "revision", "since"], rows, right="size")


def _was(version: str, model: Model) -> str:
    return "previous" if version == model.previous else ""


def _data(
    place: Place,
    header: GgufHeader,
    facts: dict[str, Any],
    record: Record | None,
    arguments: Namespace,
) -> dict[str, Any]:
    data = {
        "name": place.name,
        "path": str(place.path) if place.path else None,
        "source": str(place.source) if place.source else None,
        "facts": facts,
        "record": record.to_data() if record else None,
        "versions": _versions(place.found.model) if place.found else [],
        "aliases": list(place.found.model.aliases) if place.found else [],
    }
    if arguments.metadata:
        data["metadata"] = {key: value_data(value) for key, value in header.metadata.items()}
    if arguments.tensors:
        data["tensors"] = [
            {"name": one.name, "type": one.type, "shape": list(one.shape), "bytes": one.size_bytes}
            for one in header.tensors
        ]
    return data


def _versions(model: Model) -> list[dict[str, Any]]:
    return [
        {
            "id": version.id,
            "digest": version.digest,
            "revision": version.revision,
            "source": version.source,
            "size_bytes": version.size_bytes,
            "added_at": version.added_at,
            "active": version.id == model.active,
            "previous": version.id == model.previous,
            "verified": version.verified,
            "damaged": version.damaged,
        }
        for version in model.versions
    ]


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(str(length) for length in shape)
