"""`modelctl update`: newer versions of the models that are here."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict
from typing import Any

from ...core.model_files import read_record
from ...core.model_store import FetchSettings, ModelStore
from ..attributes import Attributes
from ..exit_codes import Exit, ModelctlError
from ..failures import failure_of
from ..host import Host, fetch_settings, hub_client
from ..output import emit, say, tell
from ..switching import restarted
from ..terminal_progress import TerminalProgress


def run(arguments: Namespace) -> int:
    host = Host(arguments)
    if arguments.check and (arguments.promote or arguments.restart):
        raise ModelctlError("--check changes nothing: it goes with no other option", Exit.USAGE)
    if arguments.restart and not arguments.promote:
        raise ModelctlError("--restart goes with --promote", Exit.USAGE)
    if not arguments.check:
        host.prepare_writing()
    attributes = Attributes.of_models(host.models_dir, host.catalogue)
    settings = fetch_settings(host, arguments, attributes.are_those_of)
    names = arguments.names or [model.name for model in host.catalogue.models()]
    for name in names:
        host.catalogue.owner(name)
    models: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    code = Exit.OK
    for name in names:
        try:
            work = _check if arguments.check else _update
            data, status = work(host, name, settings, arguments)
        except Exception as error:
            failure = failure_of(error)
            if failure is None:
                raise
            status = failure.code
            failed.append({"name": name, "error": str(failure), "exit_code": int(status)})
            tell(f"{name}: {failure}")
        else:
            models.append(data)
            if not arguments.json:
                say(f"{data['name']}  {data['detail']}")
        code = status or code
    if arguments.json:
        emit({"models": models, "failed": failed})
    return code


def _check(
    host: Host, name: str, settings: FetchSettings, arguments: Namespace
) -> tuple[dict[str, Any], Exit]:
    """Only look. That nobody can tell is not an answer: a script must not take it for no."""
    model = host.catalogue.owner(name)
    record = read_record(model.path)
    if record is None:
        raise ModelctlError(f"{model.path} has no record of where it came from")
    with TerminalProgress() as progress:
        store = ModelStore(hub_client(arguments, progress.say), progress)
        check = store.check_update(record, settings)
    data = {
        "name": model.name,
        "available": check.available,
        "newest": [asdict(file) for file in check.newest],
        "detail": check.detail,
    }
    no_answer = check.available is None and not check.newest
    return data, Exit.NETWORK if no_answer else Exit.OK


def _update(
    host: Host, name: str, settings: FetchSettings, arguments: Namespace
) -> tuple[dict[str, Any], Exit]:
    model = host.catalogue.owner(name)
    with TerminalProgress() as progress:
        store = ModelStore(hub_client(arguments, progress.say), progress)
        updated = host.catalogue.update(model.name, store, settings, promote=arguments.promote)
    data: dict[str, Any] = {
        "name": model.name,
        "available": updated.version != model.active,
        "fetched": updated.fetched,
        "version": updated.version,
        "promoted": False,
        "restart": [],
        "detail": updated.detail,
    }
    if updated.switch is not None:
        switched, code = restarted(host, updated.switch, restart=arguments.restart)
        data |= {
            "promoted": True,
            "restart": switched["restart"],
            "detail": f"version {updated.version} is in use now",
        }
        return data, code
    if data["available"]:
        data["detail"] = (
            f"version {updated.version} is here; "
            f"`modelctl promote {model.name} {updated.version}` puts it in use"
        )
    return data, Exit.OK
