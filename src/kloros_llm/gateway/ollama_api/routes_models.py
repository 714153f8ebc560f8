"""The routes about models and names, and those of Ollama's cloud, which is not there."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from ..engines.loaded_models import loaded_json
from ..errors import ApiError
from ..front.request_bodies import parsed_body
from ..front.services import SERVICES
from ..go_text import quote
from ..models import creation, name_changes
from ..models.blobs import not_written
from ..models.pulls import Line
from .api_requests import (
    CopyRequest,
    CreateRequest,
    DeleteRequest,
    PullRequest,
    PushRequest,
    ShowRequest,
)
from .json_text import compact
from .model_names import display_name
from .progress_lines import respond
from .show import show

JSON: Final = "application/json; charset=utf-8"
MODEL_REQUIRED: Final = "model is required"
NO_ACCOUNT: Final = "account unavailable"
_NO_CLOUD: Final = "ollama cloud is disabled"
_BLOB: Final = "/api/blobs/{digest}"


async def running(_: web.Request) -> web.Response:
    """The liveness probe of most clients."""
    return web.Response(text="Ollama is running")


async def version(request: web.Request) -> web.Response:
    """The version of Ollama that is spoken."""
    return _json({"version": request.app[SERVICES].config.ollama_version})


async def status(_: web.Request) -> web.Response:
    """There is no cloud, as if Ollama's environment had said so."""
    return _json({"cloud": {"disabled": True, "source": "env"}})


async def tags(request: web.Request) -> web.Response:
    """What this listener lists."""
    services = request.app[SERVICES]
    return _body(services.catalogue.tags_json(services.listener))


async def ps(request: web.Request) -> web.Response:
    """What this listener's instances have in memory."""
    services = request.app[SERVICES]
    loaded = services.backends.loaded()
    return _body(loaded_json(services.catalogue, services.listener, loaded))


async def show_model(request: web.Request) -> web.Response:
    """All of one name."""
    services = request.app[SERVICES]
    asked = await parsed_body(request, ShowRequest.parse)
    if not asked.model:
        raise ApiError(400, MODEL_REQUIRED)
    served = services.catalogue.named(services.listener, display_name(asked.model))
    return _body(await show(services.catalogue, served.persona, asked))


async def copy(request: web.Request) -> web.StreamResponse:
    """Another name for what a name means."""
    services = request.app[SERVICES]
    asked = await parsed_body(request, CopyRequest.parse)
    await name_changes.copy(services.catalogue, services.listener, asked.source, asked.destination)
    return _empty(200)


async def delete(request: web.Request) -> web.StreamResponse:
    """Forget a name."""
    services = request.app[SERVICES]
    asked = await parsed_body(request, DeleteRequest.parse)
    await name_changes.delete(services.catalogue, services.listener, asked.model)
    return _empty(200)


async def create(request: web.Request) -> web.StreamResponse:
    """A name from a model and a Modelfile."""
    asked = await parsed_body(request, CreateRequest.parse)
    lines = creation.create(request.app[SERVICES].catalogue, asked)
    return await respond(request, lines, stream=asked.stream)


async def pull(request: web.Request) -> web.StreamResponse:
    """Get a model."""
    asked = await parsed_body(request, PullRequest.parse)
    lines = request.app[SERVICES].catalogue.pull(asked.model)
    return await respond(request, lines, stream=asked.stream)


async def push(request: web.Request) -> web.StreamResponse:
    """Ollama's registry takes models of its account holders only, and there is no account."""
    services = request.app[SERVICES]
    asked = await parsed_body(request, PushRequest.parse)
    if not asked.model:
        raise ApiError(400, MODEL_REQUIRED)

    async def lines() -> AsyncGenerator[Line]:
        yield {"status": "retrieving manifest"}
        services.catalogue.named(services.listener, asked.model)
        raise ApiError(500, f"{NO_ACCOUNT}: this server pushes no models to a registry")

    return await respond(request, lines(), stream=asked.stream)


async def has_blob(request: web.Request) -> web.StreamResponse:
    """Whether a content need not be uploaded."""
    catalogue = request.app[SERVICES].catalogue
    digest = request.match_info["digest"]
    if not catalogue.blobs.has(digest) and not catalogue.has_content(digest):
        raise ApiError(404, f"blob {quote(digest)} not found")
    return _empty(200)


async def take_blob(request: web.Request) -> web.StreamResponse:
    """A content that `create` will name, streamed to the disk."""
    catalogue = request.app[SERVICES].catalogue
    digest = request.match_info["digest"]
    if catalogue.blobs.has(digest) or catalogue.has_content(digest):
        return _empty(200)
    try:
        await catalogue.blobs.receive(digest, request.content.iter_any(), request.content_length)
    except OSError as error:
        raise not_written(error) from error
    return _empty(201)


async def account(_: web.Request) -> web.Response:
    """What Ollama says where its cloud cannot be reached."""
    raise ApiError(503, NO_ACCOUNT)


async def web_search(request: web.Request) -> web.Response:
    """A service of the cloud."""
    return await _cloud(request, "web search is unavailable")


async def web_fetch(request: web.Request) -> web.Response:
    """A service of the cloud."""
    return await _cloud(request, "web fetch is unavailable")


async def recommendations(_: web.Request) -> web.Response:
    """The cloud's list of models, of which nothing is known here."""
    return _json({"recommendations": []})


async def _cloud(request: web.Request, what: str) -> web.Response:
    if not (await request.read()).strip():
        raise ApiError(400, "missing request body")
    raise ApiError(403, f"{_NO_CLOUD}: {what}")


ROUTES: Final[tuple[tuple[str, str, Handler], ...]] = (
    ("HEAD", "/", running),
    ("GET", "/", running),
    ("HEAD", "/api/version", version),
    ("GET", "/api/version", version),
    ("GET", "/api/status", status),
    ("HEAD", "/api/tags", tags),
    ("GET", "/api/tags", tags),
    ("GET", "/api/ps", ps),
    ("POST", "/api/show", show_model),
    ("POST", "/api/copy", copy),
    ("DELETE", "/api/delete", delete),
    ("POST", "/api/create", create),
    ("HEAD", _BLOB, has_blob),
    ("POST", _BLOB, take_blob),
    ("POST", "/api/pull", pull),
    ("POST", "/api/push", push),
    ("POST", "/api/me", account),
    ("POST", "/api/signout", account),
    ("DELETE", "/api/user/keys/{key}", account),
    ("POST", "/api/experimental/web_search", web_search),
    ("POST", "/api/experimental/web_fetch", web_fetch),
    ("GET", "/api/experimental/model-recommendations", recommendations),
)
"""Method, path and handler. Bodies of UPLOADS are streamed: they may have any size."""
UPLOADS: Final = frozenset({_BLOB})


def _body(body: bytes) -> web.Response:
    return web.Response(body=body, headers={"Content-Type": JSON})


def _json(value: object) -> web.Response:
    return _body(compact(value).encode())


def _empty(status_code: int) -> web.StreamResponse:
    return web.Response(status=status_code)
