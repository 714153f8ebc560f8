"""One listener's application: Ollama's table of routes, guarded."""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler

from ..ollama_api import routes_embed, routes_generate, routes_models
from ..openai_api import routes_openai
from .guard import Guard
from .services import SERVICES, Services

_GENERATION: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/api/generate", routes_generate.generate),
    ("POST", "/api/chat", routes_generate.chat),
    ("POST", "/api/embed", routes_embed.embed),
    ("POST", "/api/embeddings", routes_embed.embeddings),
    ("POST", "/v1/chat/completions", routes_openai.chat_completions),
    ("POST", "/v1/completions", routes_openai.completions),
    ("POST", "/v1/embeddings", routes_openai.embeddings),
    ("POST", "/v1/responses", routes_openai.responses),
    ("POST", "/v1/audio/transcriptions", routes_openai.transcriptions),
    ("GET", "/v1/models", routes_openai.models),
    ("GET", "/v1/models/{model}", routes_openai.model),
    ("POST", "/v1/messages", routes_openai.messages),
)

UPLOAD_ROUTES = routes_models.UPLOADS


def make_application(services: Services, guard: Guard, body_bytes: int) -> web.Application:
    """All routes. A body that is not streamed by its handler has `body_bytes` at most."""
    application = web.Application(
        middlewares=[guard.middleware],
        client_max_size=body_bytes,
    )
    application[SERVICES] = services
    application.on_response_prepare.append(guard.prepared)
    for method, path, handler in (*routes_models.ROUTES, *_GENERATION):
        # Without aiohttp's HEAD beside each GET: Ollama answers it on some routes only.
        application.router.add_route(method, path, handler)
    return application
