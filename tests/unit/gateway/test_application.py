"""The table of routes is Ollama's."""

from __future__ import annotations

import io
from typing import cast

from kloros_llm.gateway.front.access import Access
from kloros_llm.gateway.front.access_log import AccessLog
from kloros_llm.gateway.front.application import UPLOAD_ROUTES, make_application
from kloros_llm.gateway.front.guard import Guard
from kloros_llm.gateway.front.metrics import GatewayMetrics
from kloros_llm.gateway.front.services import Services

_TABLE = """
HEAD,GET / /api/version /api/tags
GET /api/status /api/ps /api/experimental/model-recommendations /v1/models /v1/models/{model}
POST /api/show /api/generate /api/chat /api/embed /api/embeddings /api/create /api/pull /api/push
POST /api/copy /api/me /api/signout /api/experimental/web_search /api/experimental/web_fetch
POST /v1/chat/completions /v1/completions /v1/embeddings /v1/responses /v1/audio/transcriptions
POST /v1/messages
DELETE /api/delete /api/user/keys/{key}
HEAD,POST /api/blobs/{digest}
"""


def test_every_route_of_ollama_is_there_and_no_other() -> None:
    metrics = GatewayMetrics()
    guard = Guard(
        "here",
        Access("127.0.0.1"),
        metrics,
        AccessLog(io.StringIO()),
        body_bytes=1,
        body_s=1,
        uploads=UPLOAD_ROUTES,
    )
    application = make_application(cast(Services, object()), guard, 1)
    wanted = {
        (method, path)
        for line in _TABLE.strip().splitlines()
        for methods, *paths in [line.split()]
        for method in methods.split(",")
        for path in paths
    }
    found = {
        (route.method, route.resource.canonical)
        for route in application.router.routes()
        if route.resource is not None
    }
    assert found == wanted
    assert {path for _, path in wanted} >= UPLOAD_ROUTES
