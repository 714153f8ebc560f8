"""Answers where no route fits: those of gin and of Go's ServeMux, which Ollama uses."""

from __future__ import annotations

import html
import posixpath

from aiohttp import web

# The order in which Ollama's methods appear under `Allow`.
_METHODS = ("HEAD", "GET", "POST", "DELETE")


def unrouted(request: web.Request, error: web.HTTPException) -> web.Response:
    """404, 405, or the way to the path that was probably meant."""
    path = request.path
    cleaned = _cleaned(path)
    if cleaned != path:
        return _moved(request, cleaned, 307)
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(method for method in _METHODS if method in error.allowed_methods)
        return web.Response(
            status=405,
            body=b"405 method not allowed",
            headers={"Content-Type": "text/plain", "Allow": allowed},
        )
    other = path[:-1] if path.endswith("/") else path + "/"
    if path != "/" and (request.method, other) in _plain_routes(request.app):
        return _moved(request, other, 301 if request.method == "GET" else 307)
    return web.Response(
        status=404, body=b"404 page not found", headers={"Content-Type": "text/plain"}
    )


def _cleaned(path: str) -> str:
    """Without empty, `.` and `..` segments; a slash at the end stays."""
    normal = posixpath.normpath("/" + path.lstrip("/"))
    return normal + "/" if path.endswith("/") and normal != "/" else normal


def _plain_routes(application: web.Application) -> set[tuple[str, str]]:
    return {
        (route.method, route.resource.canonical)
        for route in application.router.routes()
        if route.resource is not None
    }


def _moved(request: web.Request, path: str, status: int) -> web.Response:
    # "//elsewhere" would be another host's name.
    query = f"?{request.query_string}" if request.query_string else ""
    place = str(request.url.with_path(path).raw_path) + query
    phrase = "Moved Permanently" if status == 301 else "Temporary Redirect"
    body = f'<a href="{html.escape(place)}">{phrase}</a>.\n\n' if request.method == "GET" else ""
    headers = {"Location": place}
    if body:
        headers["Content-Type"] = "text/html; charset=utf-8"
    return web.Response(status=status, body=body.encode(), headers=headers)
