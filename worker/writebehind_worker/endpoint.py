"""HTTP for Prometheus and for whoever restarts or routes, /metrics, /healthz, /readyz; / for people."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST

from .course import Course
from .errors import FatalError
from .metrics import Metrics
from .overview import Overview, overview
from .recorder import Recorder
from .state import WorkerState
from .status_page import COMMON_HEADERS, page_headers, status_page

_JSON = "application/json"
_Page = tuple[int, str, bytes, Mapping[str, str]]  # status, content type, body, further headers


class Endpoint:
    """Serves on threads of its own. Starting and stopping twice is harmless.

    While it runs, one of them keeps the recent course of the metrics, which the page at / draws. Port 0
    takes any free one, see `port`; the worker's configuration means "none" by 0 and makes no endpoint then.
    """

    def __init__(
        self, host: str, port: int, metrics: Metrics, state: WorkerState, course: Course | None = None
    ) -> None:
        self._address = (host, port)
        self._state = state
        self._server: _Server | None = None
        self._show(metrics, Course() if course is None else course)

    @property
    def port(self) -> int:
        """The port served on, or the one asked for while stopped."""
        return self._server.server_port if self._server else self._address[1]

    def start(self) -> None:
        """Raises `FatalError` if the address cannot be served on."""
        if self._server is None:
            self._server = self._listen(self._address)
        self._recorder.start()

    def move(self, host: str, port: int, metrics: Metrics, course: Course) -> None:
        """Serves these from now on, and at this address; one that is the same is not bound anew.

        Raises `FatalError` if it cannot listen there; it stays where it was.
        """
        if self._server is None or (host, port) != self._address:
            self._bind_anew((host, port))
        self._recorder.stop()
        self._show(metrics, course)
        self._recorder.start()

    def stop(self) -> None:
        self._recorder.stop()
        server, self._server = self._server, None
        if server is not None:
            server.end()

    def _show(self, metrics: Metrics, course: Course) -> None:
        state = self._state
        self._recorder = Recorder(metrics, course)
        self._pages: dict[str, Callable[[], _Page]] = {
            "/": lambda: (200, "text/html; charset=utf-8", status_page(), page_headers()),
            "/status.json": lambda: _as_json(overview(metrics, state, course)),
            "/metrics": lambda: (200, CONTENT_TYPE_LATEST, metrics.text(), {}),
            "/healthz": lambda: _verdict(*state.health()),
            "/readyz": lambda: _verdict(*state.readiness()),
        }

    def _page_at(self, path: str) -> Callable[[], _Page] | None:
        return self._pages.get(path)

    def _bind_anew(self, address: tuple[str, int]) -> None:
        """The new address first, so that the old one is held until it can be left."""
        try:
            before, self._server = self._server, self._listen(address)
        except FatalError:
            if self._server is None or address[1] != self._address[1]:
                raise
            # One of the two hosts may stand for all addresses: then they exclude each other.
            self.stop()
            try:
                self._server = self._listen(address)
            except FatalError:
                self.start()
                raise
        else:
            if before is not None:
                before.end()
        self._address = address

    def _listen(self, address: tuple[str, int]) -> _Server:
        host, port = address
        try:
            return _Server(address, _handler(self._page_at))
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise FatalError(
                f"the metrics endpoint cannot listen on {host}:{port}: {reason}",
                "choose another --metrics-port or --metrics-host, or --metrics-port 0 for none",
            ) from error


class _Server(ThreadingHTTPServer):
    """Serves from the beginning, on a thread of its own, until `end`."""

    daemon_threads = True
    block_on_close = False  # a client that hangs must not hold up the stop
    allow_reuse_port = False  # a second worker on this port has to be told

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), name="endpoint", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()

    def server_bind(self) -> None:
        # HTTPServer would look up its own name, which takes seconds where DNS does not answer.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no event."""


def _verdict(ok: bool, facts: dict[str, Any]) -> _Page:
    return 200 if ok else 503, _JSON, json.dumps(facts).encode() + b"\n", {}


def _as_json(found: Overview) -> _Page:
    return 200, _JSON, msgspec.json.encode(found) + b"\n", COMMON_HEADERS


def _handler(page_at: Callable[[str], Callable[[], _Page] | None]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        server_version = "writebehind"
        sys_version = ""
        timeout = 10  # seconds for a client to send its request

        def parse_request(self) -> bool:
            valid = super().parse_request()
            if valid and self.command not in {"GET", "HEAD"}:
                self._answer(405, "text/plain", b"only GET and HEAD\n", {"Allow": "GET, HEAD"})
                return False
            return valid

        def do_GET(self) -> None:
            page = page_at(self.path.partition("?")[0])
            self._answer(*(page() if page else (404, "text/plain", b"not found\n", {})))

        def do_HEAD(self) -> None:
            self.do_GET()

        def _answer(self, status: int, content_type: str, body: bytes, more: Mapping[str, str]) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            for name, value in more.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """A probe every second is not worth a line."""

    return Handler
