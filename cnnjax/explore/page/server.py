"""Access to the page: 127.0.0.1 only, no other origin, small bodies, nothing written to disk."""

import contextlib
import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from cnnjax.errors import UserError
from cnnjax.explore.page import views
from cnnjax.explore.page.views import Answer
from cnnjax.inference.model import TrainedModel

HERE = Path(__file__).parent
MAX_BYTES = 20_000_000  # of what is uploaded
ADDRESS, HOSTS = "127.0.0.1", ["127.0.0.1", "localhost"]
FILES = {"/": "index.html", "/app.js": "app.js", "/style.css": "style.css"}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
Endpoint = Callable[[Request], Awaitable[Response]]


def same_origin_only(app: ASGIApp) -> ASGIApp:
    """Refuses requests that another site's page makes through the user's browser."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Request(scope).headers
            own = f"http://{headers.get('host')}"
            same_site = headers.get("sec-fetch-site", "none") in ("none", "same-origin")
            if headers.get("origin", own) != own or not same_site:
                refusal = JSONResponse({"error": "requests from other origins are refused"}, 403)
                return await refusal(scope, receive, send)
        await app(scope, receive, send)

    return guarded


def make_app(trained: TrainedModel) -> Starlette:
    """The application, one route for each answer of `views`."""
    shown = views.Views(trained)
    routes = [
        *(Route(path, _file) for path in FILES),
        Route("/api/model", _answer(lambda query: shown.model())),
        Route("/api/maps", _answer(lambda query: shown.feature_maps(query["id"], query["layer"]))),
        Route("/api/heat", _answer(lambda query: shown.heat(query["id"], int(query["class"])))),
        Route("/api/patches", _answer(lambda query: shown.patches(query["layer"], int(query["unit"])))),
        Route("/api/example", _answer(lambda query: views.example(query["picture"], query["filter"]))),
        Route("/api/upload", _post(shown.upload), methods=["POST"]),
        Route("/api/operation", _post(lambda body: views.operation(_object(body))), methods=["POST"]),
    ]
    guards = [Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS), Middleware(same_origin_only)]
    return Starlette(routes=routes, middleware=guards)


def _file(request: Request) -> Response:
    return FileResponse(HERE / FILES[request.scope["path"]], headers=HEADERS)


def _answer(view: Callable[[Mapping[str, str]], Answer]) -> Endpoint:
    async def send(request: Request) -> Response:
        return await _reply(view, request.query_params)

    return send


def _post(view: Callable[[bytes], Answer]) -> Endpoint:
    async def send(request: Request) -> Response:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BYTES:
                error = f"more than {MAX_BYTES // 1_000_000} MB; take a smaller image"
                return JSONResponse({"error": error}, 413)
        return await _reply(view, bytes(body))

    return send


async def _reply(view: Callable[..., Answer], request: Mapping[str, str] | bytes) -> Response:
    """The view's answer as JSON, or a user's mistake in one line."""
    try:
        return JSONResponse(await run_in_threadpool(view, request), headers=HEADERS)
    except UserError as error:
        return JSONResponse({"error": str(error)}, 400, headers=HEADERS)
    except (KeyError, ValueError):
        return JSONResponse({"error": "a value of the address is missing or is no number"}, 400)


def _object(body: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):  # the latter for brackets nested a thousand deep
        if isinstance(value := json.loads(body), dict):
            return value
    raise UserError("the body is not a JSON object")


def serve(trained: TrainedModel, port: int, announce: Callable[[str], None]) -> None:
    """Serves on a port of 127.0.0.1, 0 for a free one, until interrupted; announces its address."""
    app = make_app(trained)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind((ADDRESS, port))
        except OSError as error:
            raise UserError(f"port={port} cannot be opened ({error.strerror}); try port=0") from None
        opened.listen()
        announce(f"http://{ADDRESS}:{opened.getsockname()[1]}")
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[opened])
