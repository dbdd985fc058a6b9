"""Access to the page: 127.0.0.1 only, no other origin, small bodies in time, nothing written to disk."""

import asyncio
import contextlib
import dataclasses
import json
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path

import h11
import uvicorn
from ml_collections import ConfigDict
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from cnnjax.data.files import parse_json
from cnnjax.errors import UserError, visible
from cnnjax.explore.page import operations
from cnnjax.explore.page.operations import Answer
from cnnjax.explore.page.reasons import Reasons
from cnnjax.explore.page.training import Training
from cnnjax.explore.page.views import Views
from cnnjax.inference.model import TrainedModel

HERE = Path(__file__).parent
MAX_BYTES, MAX_OPERATION = 20_000_000, 1_000_000  # bytes of a body
SECONDS = 20.0  # for a request to arrive, and for a connection without one
MAX_CONNECTIONS = 100
ADDRESS = "127.0.0.1"
HOSTS = (ADDRESS, "localhost")
SCRIPTS = ("app", "dom", "images", "network", "inspector", "reasons", "compare", "training", "operations")
FILES = {"/": "index.html", "/style.css": "style.css", **{f"/{name}.js": f"{name}.js" for name in SCRIPTS}}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
Endpoint = Callable[[Request], Awaitable[Response]]


def guarded(app: ASGIApp) -> ASGIApp:
    """Adds `HEADERS` to every reply, also of errors, and refuses what does not come from the page itself."""
    own = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_all(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        foreign = _foreign(Request(scope)) if scope["type"] == "http" else None
        await (foreign or app)(scope, receive, send_all)

    return call


def _foreign(request: Request) -> Response | None:
    """The refusal of a request under another host's name, or of another site's page in the user's browser."""
    host = request.headers.get("host", "")
    if host.partition(":")[0] not in HOSTS:
        return _error(400, f"the host is {ADDRESS}")
    same_site = request.headers.get("sec-fetch-site", "none") in ("none", "same-origin")
    if same_site and request.headers.get("origin", f"http://{host}") == f"http://{host}":
        return None
    return _error(403, "requests from other origins are refused")


@dataclasses.dataclass(frozen=True)
class Page:
    """What the page can be asked about one network."""

    views: Views
    reasons: Reasons
    training: Training

    @classmethod
    def of(cls, trained: TrainedModel, images: ConfigDict | None = None, weights: str = "raw") -> "Page":
        """The page of a network, nothing of it compiled yet.

        `images` names other test images than the run's, `weights` the kind that a run was asked for.
        """
        views = Views(trained, images)
        return cls(views, Reasons(views.network), Training(views, weights))


def make_app(page: Page) -> ASGIApp:
    """The application, one route for each answer."""
    views, reasons, training = page.views, page.reasons, page.training
    image: dict[str, type] = {"id": str}
    reason: dict[str, type] = {"id": str, "class": int, "method": str, "layer": str}
    answers: dict[str, tuple[Callable[..., Answer], dict[str, type]]] = {
        "model": (views.model, {}),
        "samples": (views.samples, {}),
        "look": (views.look, image),
        "walk": (views.walk, image),
        "maps": (views.feature_maps, image | {"stage": int, "page": int}),
        "filters": (views.filters, {"stage": int, "unit": int, "page": int}),
        "window": (views.window, image | dict.fromkeys(("stage", "unit", "row", "column"), int)),
        "unit": (views.unit, {"stage": int, "unit": int}),
        "heat": (reasons.heat, reason),
        "curves": (reasons.curves, reason),
        "sanity": (reasons.sanity, reason),
        "compare": (reasons.similarities, image | {"other": str}),
        "differences": (reasons.differences, image | {"other": str, "stage": int}),
        "training": (training.run, {}),
        "step": (training.step, {"step": int, "id": str, "stage": int}),
        "example": (operations.example, {"picture": str, "filter": str}),
    }
    routes = [
        *(Route(path, _file) for path in FILES),
        *(Route(f"/api/{name}", _answer(view, **kinds)) for name, (view, kinds) in answers.items()),
        Route("/api/upload", _post(views.upload, MAX_BYTES), methods=["POST"]),
        Route("/api/operation", _post(_operation, MAX_OPERATION), methods=["POST"]),
    ]
    return guarded(Starlette(routes=routes, exception_handlers={HTTPException: _refused}))


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # no such page, or another method
    return _error(error.status_code, error.detail)


def _error(status: int, message: object) -> Response:
    return Response(json.dumps({"error": visible(message)}), status, media_type="application/json")


def _file(request: Request) -> Response:
    return FileResponse(HERE / FILES[request.scope["path"]])


def _answer(view: Callable[..., Answer], **kinds: type) -> Endpoint:
    """An endpoint that passes the values of its address to a view: texts, or whole numbers."""

    async def send(request: Request) -> Response:
        return await _reply(lambda: view(*_values(request.query_params, kinds)))

    return send


def _values(query: Mapping[str, str], kinds: Mapping[str, type]) -> list[str | int]:
    if query.keys() != kinds.keys():
        raise UserError(f"a value is missing or unknown: {list(query)}; allowed: {list(kinds)}")
    for name, kind in kinds.items():
        if kind is int and not (query[name].isascii() and query[name].isdigit() and len(query[name]) < 10):
            raise UserError(f"{name}={query[name]!r} is no number")
    return [kind(query[name]) for name, kind in kinds.items()]


def _post(view: Callable[[bytes], Answer], most: int) -> Endpoint:
    """An endpoint that passes a body of at most `most` bytes to a view."""

    async def send(request: Request) -> Response:
        body = bytearray()
        try:
            async with asyncio.timeout(SECONDS):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > most:
                        return _error(413, f"more than {most // 1_000_000} MB; take a smaller image")
        except TimeoutError:
            return _error(408, f"the body did not arrive within {SECONDS:g} s")
        except ClientDisconnect:
            return Response(status_code=400)  # to nobody
        return await _reply(lambda: view(bytes(body)))

    return send


async def _reply(view: Callable[[], Answer]) -> Response:
    """The view's answer as JSON, or a user's mistake in one line."""
    try:
        answer = await run_in_threadpool(view)
    except UserError as error:
        return _error(400, error)
    try:
        return Response(json.dumps(answer, allow_nan=False), media_type="application/json")
    except ValueError:
        return _error(400, "the result is not finite")


def _operation(body: bytes) -> Answer:
    try:
        return operations.operation(parse_json(body))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"the body is not a JSON object: {error}") from None


class Connection(H11Protocol):
    """uvicorn's, closed if no request arrives in time, and with `HEADERS` if it is none."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._close_if_idle(first=True)

    def _close_if_idle(self, first: bool = False) -> None:
        busy = self.cycle is not None and not self.cycle.response_complete
        if len(self.connections) > MAX_CONNECTIONS or not (first or busy):
            self.transport.abort()
        if not self.transport.is_closing():
            self.loop.call_later(SECONDS, self._close_if_idle)

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            head = {**HEADERS, "Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(msg))}
            lines = ["HTTP/1.1 400 Bad Request", *(f"{name}: {value}" for name, value in head.items())]
            self.transport.write("\r\n".join([*lines, "Connection: close", "", msg]).encode())
        self.transport.close()


def settings(app: ASGIApp) -> uvicorn.Config:
    """How the page is served: quietly, and by `Connection`."""
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        loop="asyncio",  # others take the signals
        log_level="error",
        use_colors=False,
        timeout_graceful_shutdown=2,
    )


class Server(uvicorn.Server):
    """uvicorn's, which leaves signals to the command."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(page: Page, port: int, announce: Callable[[str], None]) -> None:
    """Serves on a port of 127.0.0.1, 0 for a free one, until interrupted; announces its address."""
    app = make_app(page)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind((ADDRESS, port))
        except OSError as error:
            raise UserError(f"port={port} cannot be opened ({error.strerror}); try port=0") from None
        opened.listen()
        page.views.network.warm([page.reasons.warm])
        announce(f"http://{ADDRESS}:{opened.getsockname()[1]}")
        Server(settings(app)).run(sockets=[opened])
