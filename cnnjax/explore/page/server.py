"""Who may ask for the page, and how: 127.0.0.1 only, no other origin, small bodies, nothing on the disk."""

import functools
import json
import socket
from collections.abc import Callable
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
from cnnjax.inference.model import TrainedModel

HERE = Path(__file__).parent
ADDRESS = "127.0.0.1"
HOSTS = [ADDRESS, "localhost"]
FILES = {"/": "index.html", "/app.js": "app.js", "/style.css": "style.css"}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class SameOriginOnly:
    """Refuses what another site's page asks for through the user's browser."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope)
            origin = request.headers.get("origin")
            site = request.headers.get("sec-fetch-site", "none")
            own = f"http://{request.headers.get('host')}"
            if (origin is not None and origin != own) or site not in ("none", "same-origin"):
                response = JSONResponse({"error": "another origin may not ask"}, 403)
                await response(scope, receive, send)
                return
        await self.app(scope, receive, send)


def make_app(trained: TrainedModel) -> Starlette:
    """The application; `views.Views` answers."""
    shown = views.Views(trained)
    routes = [Route(path, _file(name)) for path, name in FILES.items()]
    routes += [
        Route("/api/model", _answer(lambda query: shown.model())),
        Route("/api/maps", _answer(lambda query: shown.feature_maps(query["id"], query["layer"]))),
        Route("/api/heat", _answer(lambda query: shown.heat(query["id"], int(query["class"])))),
        Route("/api/patches", _answer(lambda query: shown.patches(query["layer"], int(query["unit"])))),
        Route("/api/example", _answer(lambda query: views.example(query["picture"], query["filter"]))),
        Route("/api/upload", _post(shown.upload), methods=["POST"]),
        Route("/api/operation", _post(lambda body: views.operation(_object(body))), methods=["POST"]),
    ]
    guards = [Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS), Middleware(SameOriginOnly)]
    return Starlette(routes=routes, middleware=guards)


def _file(name: str) -> Callable:
    async def send(request: Request) -> Response:
        return FileResponse(HERE / name, headers=HEADERS)

    return send


def _answer(view: Callable[[Any], dict[str, Any]]) -> Callable:
    async def send(request: Request) -> Response:
        return await _reply(functools.partial(view, request.query_params))

    return send


def _post(view: Callable[[bytes], dict[str, Any]]) -> Callable:
    async def send(request: Request) -> Response:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > views.MAX_BYTES:
                return JSONResponse(
                    {"error": f"more than {views.MAX_BYTES // 1_000_000} MB; take a smaller image"}, 413
                )
        return await _reply(functools.partial(view, bytes(body)))

    return send


async def _reply(view: Callable[[], dict[str, Any]]) -> Response:
    """The view's answer as JSON; a user's mistake as its one line."""
    try:
        return JSONResponse(await run_in_threadpool(view), headers=HEADERS)
    except UserError as error:
        return JSONResponse({"error": str(error)}, 400, headers=HEADERS)
    except (KeyError, ValueError):
        return JSONResponse({"error": "a value of the address is missing or is no number"}, 400)


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):  # the latter for brackets nested a thousand deep
        found = None
    if not isinstance(found, dict):
        raise UserError("the body is not a JSON object")
    return found


def serve(trained: TrainedModel, port: int, announce: Callable[[str], None]) -> None:
    """Serves until it is interrupted.

    Args:
      port: of 127.0.0.1; 0 takes a free one.
      announce: is told the address once it answers.

    Raises:
      UserError: where the port is taken.
    """
    app = make_app(trained)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind((ADDRESS, port))
        except OSError as error:
            raise UserError(f"--port={port} cannot be opened ({error.strerror}); try --port=0") from None
        opened.listen()
        announce(f"http://{ADDRESS}:{opened.getsockname()[1]}")
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[opened])
