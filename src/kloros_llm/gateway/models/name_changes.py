"""What `copy` and `delete` do to names."""

from __future__ import annotations

import asyncio
import logging

from ...core.model_catalogue import Catalogue as ModelCatalogue
from ...core.model_catalogue import InUseError
from ...core.model_files import read_record
from ...core.model_store import StoreError
from ..config import Listener, Model
from ..errors import ApiError
from ..go_text import quote
from ..ollama_api.model_names import name_key, parse_name
from .catalogue import Catalogue
from .personas import Created
from .pulls import in_thread, unwritable
from .survey import Entry, made_from

COPY_MISSING = "model {quoted} not found"
_LOG = logging.getLogger(__name__)


def check_free(catalogue: Catalogue, name: str) -> None:
    """Raise ApiError 403 where `name` is not the clients' to change."""
    entry = catalogue.base(name)
    if entry and entry.key in catalogue.configured_keys:
        raise ApiError(
            403,
            f"model '{name}' belongs to this server's configuration; change or remove it in the "
            "inventory (gguf_models, the gateway's personas)",
        )


async def copy(catalogue: Catalogue, listener: Listener, source: str, destination: str) -> None:
    """Let `destination` mean what `source` means. Raises ApiError."""
    for what, text in (("source", source), ("destination", destination)):
        if name_key(text) is None:
            raise ApiError(400, f"{what} {quote(text)} is invalid")
    async with catalogue.changing:
        served = catalogue.named(listener, source, COPY_MISSING)
        if name_key(source) == name_key(destination):
            return
        check_free(catalogue, destination)
        before = catalogue.created(source)
        entry = Entry("", served.persona, catalogue.instances_of(source))
        target = parse_name(destination)
        name = target.display if target else destination
        owned = bool(before and before.owned)
        await put(catalogue, made_from(entry, name, owned=owned))


async def put(catalogue: Catalogue, created: Created) -> None:
    """Make the name mean this. A model that came by this API and has lost its last name so goes.

    Call it with `changing` held. Raises ApiError where the name is as it was.
    """
    former = catalogue.base(created.name)
    before = catalogue.created(created.name)
    await catalogue.save(created)
    now = catalogue.base(created.name)
    if not (before and before.owned and former and now):
        return
    model = former.persona.model
    if now.persona.model.path == model.path or catalogue.others_of(model, created.name):
        return
    try:
        async with catalogue.withdrawn(model):
            await in_thread(lambda: _remove_files(catalogue, model))
    except ApiError as error:
        _LOG.warning("%s has no name any more, and stays: %s", model.path, error.text)
    await catalogue.refresh()


async def delete(catalogue: Catalogue, listener: Listener, name: str) -> None:
    """Forget a name that a client made, and the model with it where no other name means it.

    Once begun it is done whole, though the client goes away. Raises ApiError: 404, 403 for what
    the configuration holds or what may not be written, 409 for a model that something uses.
    """
    if name_key(name) is None:
        raise ApiError(400, f"name {quote(name)} is invalid")
    await asyncio.shield(_delete(catalogue, listener, name))


async def _delete(catalogue: Catalogue, listener: Listener, name: str) -> None:
    async with catalogue.changing:
        model = catalogue.named(listener, name).persona.model
        check_free(catalogue, name)
        created = catalogue.created(name)
        if created and created.owned and not catalogue.others_of(model, name):
            async with catalogue.withdrawn(model):
                await in_thread(lambda: _remove_files(catalogue, model))
        await catalogue.forget(name)


def _remove_files(catalogue: Catalogue, model: Model) -> None:
    if catalogue.is_configured(model):
        return
    directory = model.path.parent
    record = read_record(model.path)
    further = [file.file for file in record.files[1:]] if record else []
    try:
        ModelCatalogue(directory, catalogue.fetching.users).remove_files(model.path.name, further)
    except InUseError as error:
        raise ApiError(409, str(error)) from error
    except (StoreError, OSError) as error:
        raise ApiError(403, unwritable(directory) or str(error)) from error
