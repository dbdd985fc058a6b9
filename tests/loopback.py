"""A web server of this machine that serves bytes, and fails as real ones do."""

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any


class Server:
    """Answers by path: bytes, a status, an address to go on to, or a function of (handler, body) -> JSON."""

    def __init__(self) -> None:
        self.files: dict[str, bytes | int | str | Callable[..., Any]] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []  # method, path with query, headers
        self.cuts: list[int] = []  # after so many bytes each next body is cut
        self.silent = 0.0  # seconds after a cut without anything
        self.ranges = self.etags = True
        self.length = True  # whether the size is said
        self.address = ""

    def asked(self, word: str = "") -> list[dict[str, str]]:
        return [headers for _, path, headers in self.requests if word in path]

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        path = handler.path.partition("?")[0]
        headers = {name.lower(): value for name, value in handler.headers.items()}
        self.requests.append((handler.command, handler.path, headers))
        data = handler.rfile.read(int(headers.get("content-length", 0)))
        value = self.files.get(path, 404)
        if callable(value):
            value = value(handler, data)
        if isinstance(value, dict):
            value = json.dumps(value).encode()
        if isinstance(value, int | str):
            handler.send_response(value if isinstance(value, int) else 302)
            if isinstance(value, str):
                handler.send_header("Location", value)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
        elif value is not None:
            self._send(handler, value, headers)

    def _send(
        self, handler: http.server.BaseHTTPRequestHandler, body: bytes, headers: dict[str, str]
    ) -> None:
        etag, start, status = f'"{hash(body)}"', 0, 200
        if self.ranges and "range" in headers and headers.get("if-range", etag) == etag:
            start = int(headers["range"].removeprefix("bytes=").rstrip("-"))
            status = 206 if start < len(body) else 416
        handler.send_response(status)
        if status == 206:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if self.etags:
            handler.send_header("ETag", etag)
        if self.length:
            handler.send_header("Content-Length", str(len(body) - start))
        handler.end_headers()
        part = body[start:]
        if self.cuts:
            part = part[: self.cuts.pop(0)]
            handler.wfile.write(part)
            handler.wfile.flush()
            time.sleep(self.silent)
            handler.close_connection = True
        else:
            handler.wfile.write(part)


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A running server, with its address."""
    server = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            with contextlib.suppress(ConnectionError):
                server.answer(self)

        do_POST = do_PUT = do_HEAD = do_GET

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        server.address = f"http://127.0.0.1:{running.server_port}"
        yield server
        running.shutdown()
