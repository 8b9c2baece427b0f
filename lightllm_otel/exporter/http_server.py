"""The exporter's HTTP side: ``/metrics`` in the format the scraper asks for, and the live page with its events."""

from __future__ import annotations

import errno
import functools
import http.client
import ipaddress
import json
import sys
import threading
import time
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import TCPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from lightllm_otel import page
from lightllm_otel.exporter.connections import ANSWER_SECONDS, ANSWERED, WATCHING, Connections
from lightllm_otel.exporter.event_stream import EventStream, Full
from lightllm_otel.parts import Parts
from lightllm_otel.records.vocabulary import ExporterStage

FIRST_PORT, LAST_PORT = 9464, 9479
MOST_HEAD_BYTES = 32 << 10  # of a request, with all of its headers
MOST_SCRAPES = 4  # that are written at once: each takes some megabytes while it is
SCRAPE_WAIT_SECONDS = 10.0
RETRY_SECONDS = 0.2
LOOK_SECONDS = 0.5  # how often the serving thread looks for connections that are overdue, and for its end
NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
SILENCE_SECONDS = 5.0  # an event stream says that it lives at least so often, and notices who has left
RETRY_MILLISECONDS = 3000
TITLE = "LightLLM · GPU time, live"
JSON, PLAIN, HTML = "application/json", "text/plain; charset=utf-8", "text/html; charset=utf-8"
# Of a page that nobody else is to read, frame or guess the type of.
SAFE = (
    ("X-Content-Type-Options", "nosniff"), ("X-Frame-Options", "DENY"), ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"), ("Cache-Control", "no-store"),
)  # fmt: skip


class NoFreePort(OSError):
    """Every port that may be used is taken; the message says what to do."""


class _Server(HTTPServer):
    # Newer Pythons let HTTP servers share a port; two exporters must not both believe that they have it.
    allow_reuse_port = False
    request_queue_size = 128

    def __init__(
        self, address: tuple[str, int], registry: CollectorRegistry, event_stream: EventStream, parts: Parts
    ) -> None:
        self.registry, self.event_stream, self.parts = registry, event_stream, parts
        self.guarded = _is_loopback(address[0])
        self.connections = Connections()
        self.scrapes = threading.BoundedSemaphore(MOST_SCRAPES)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Not HTTPServer's, which looks its own host name up: that takes seconds where there is no DNS."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def get_request(self) -> tuple[Any, Any]:
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in NO_ROOM:
                self.parts.failed(
                    ExporterStage.HTTP, "accept",
                    f"no connection can be taken ({error}): idle ones are ended, and it is tried again",
                )  # fmt: skip
                self.connections.end_idle()
                time.sleep(RETRY_SECONDS)  # it would be asked again at once
            raise

    def service_actions(self) -> None:
        """Called by the serving thread after each connection, and twice a second."""
        self.connections.end_overdue()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer on a thread of the connection's own, if there is a place for it."""
        if not self.connections.add(request, str(client_address[0])):
            self.shutdown_request(request)
            return
        try:
            threading.Thread(target=self._answer, args=(request, client_address), daemon=True, name="http").start()
        except RuntimeError:  # the system gives no more threads
            self.connections.remove(request)
            raise

    def _answer(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception:  # noqa: BLE001 - as in socketserver: one request must not end the others
            self.handle_error(request, client_address)
        finally:
            self.connections.remove(request)
            self.shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Peers that leave are no news; anything else is ours, and must not end up as a traceback in the server's log."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            self.parts.failed(
                ExporterStage.HTTP, type(error).__name__, f"a request from {client_address} failed: {error!r}"
            )


class _Head:
    """The request line and headers of a request, of which there may be only so many bytes."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = MOST_HEAD_BYTES

    def readline(self, size: int) -> bytes:
        is_request_line = self._left == MOST_HEAD_BYTES
        line: bytes = self._file.readline(min(size, self._left + 1))
        self._left -= len(line)
        if self._left >= 0:
            return line
        if is_request_line:
            return b""  # as if nothing had come
        raise http.client.LineTooLong("headers")  # answered with 431; an end here would pass for the last header

    def close(self) -> None:
        self._file.close()


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "lightllm-otel", ""
    timeout = ANSWER_SECONDS  # for each reading and writing; Connections limits a request and an answer as a whole

    def setup(self) -> None:
        super().setup()
        self.rfile: Any = _Head(self.rfile)

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        if parsed:
            self.server.connections.now_is(self.connection, ANSWERED)
        return parsed

    def log_message(self, format: str, *args: Any) -> None:
        """A scrape every few seconds is no news."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if self.server.guarded and not _is_loopback(_host_name(self.headers.get("Host", ""))):
            # Some page's own name, pointed at this machine, would otherwise read what is served to this machine only.
            self._text(421, "ask for localhost or 127.0.0.1; LIGHTLLM_OTEL_HOST makes this reachable by other names\n")
        elif path == "/metrics":
            self._scrape()
        elif path == "/":
            self._answer(200, HTML, live_page(), [("Content-Security-Policy", page.policy(live=True)), *SAFE])
        elif path in ("/events", "/live.json", "/frozen.html"):
            self._watch(path)
        else:
            self._text(404, "there is / and /metrics\n")

    def _scrape(self) -> None:
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        if not self.server.scrapes.acquire(timeout=SCRAPE_WAIT_SECONDS):
            self._text(503, "too many scrapes at once; scrape less often\n")
            return
        try:
            text = encode(self.server.registry)
        finally:
            self.server.scrapes.release()
        self._answer(200, content_type, text)

    do_HEAD = do_GET  # noqa: N815 - http.server looks for this name, and those below

    def _refuse(self) -> None:
        self._answer(405, PLAIN, b"this is for reading only\n", [("Allow", "GET, HEAD"), *SAFE])

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _refuse  # noqa: N815

    def _watch(self, path: str) -> None:
        # Another site's page could not read the events, but take the places of those who may.
        if self.headers.get("Sec-Fetch-Site") == "cross-site":
            self._text(403, "not for pages of other sites\n")
            return
        if self.command == "HEAD":
            self._answer(200, "text/event-stream" if path == "/events" else JSON, b"", SAFE)
            return
        try:
            with self.server.event_stream.listening() as serial:
                self.server.connections.now_is(self.connection, WATCHING)
                self._stream(serial) if path == "/events" else self._once(path, serial)
        except Full:
            self._text(503, "as many are watching as may; close a page\n")

    def _once(self, path: str, serial: int) -> None:
        text = self.server.event_stream.after(serial, SILENCE_SECONDS).text
        if text is None:
            self._text(503, "the exporter has not read anything for a while; lightllm-otel doctor\n")
        elif path == "/live.json":
            self._answer(200, JSON, text, SAFE)
        else:
            frozen = page.render(json.loads(text), TITLE)
            self._answer(200, HTML, frozen.encode(), [("Content-Security-Policy", page.policy(live=False)), *SAFE])

    def _stream(self, serial: int) -> None:
        self._head(200, "text/event-stream", SAFE)
        self.wfile.write(b"retry: %d\n\n" % RETRY_MILLISECONDS)
        while not self.server.event_stream.closed:
            shown = self.server.event_stream.after(serial, SILENCE_SECONDS)
            serial = shown.serial
            self.wfile.write(b": nothing new\n\n" if shown.text is None else b"data: " + shown.text + b"\n\n")
        self.wfile.write(b"event: ended\ndata: {}\n\n")

    def _text(self, status: int, text: str) -> None:
        self._answer(status, PLAIN, text.encode(), SAFE)

    def _answer(self, status: int, kind: str, body: bytes, more: Iterable[tuple[str, str]] = ()) -> None:
        self._head(status, kind, [("Content-Length", str(len(body))), *more])
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, kind: str, more: Iterable[tuple[str, str]]) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", kind), *more):
            self.send_header(name, value)
        self.end_headers()


@functools.cache
def live_page() -> bytes:
    """The page before its first event."""
    return page.render({"kind": "live", "events": "/events"}, TITLE, live=True).encode()


def _host_name(header: str) -> str:
    """``[::1]:9464`` and ``localhost:9464`` without their ports. No header at all is no browser's, and may pass."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if ":" in header else header or "localhost"


def _is_loopback(host: str) -> bool:
    if host.lower().rstrip(".") == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class MetricsServer:
    """Serves ``registry`` and ``feed`` on the first free port of 9464–9479, or on ``port``. Raises NoFreePort."""

    def __init__(
        self,
        registry: CollectorRegistry,
        host: str,
        port: int | None,
        event_stream: EventStream | None = None,
        parts: Parts | None = None,
    ) -> None:
        self._event_stream = event_stream or EventStream()
        self._parts = parts or Parts()
        self._registry = registry
        self._closed = False
        ports = [port] if port else range(FIRST_PORT, LAST_PORT + 1)
        self._server = self._bind(host, ports)
        self.host, self.port = host, int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._serve, daemon=True, name="metrics")
        self._thread.start()

    def _serve(self) -> None:
        while not self._closed:
            with self._parts(ExporterStage.HTTP, "serving"):
                self._server.serve_forever(LOOK_SECONDS)
            if not self._closed:
                time.sleep(RETRY_SECONDS)

    def _bind(self, host: str, ports: Iterable[int]) -> _Server:
        last: Exception | None = None
        for number in ports:
            try:
                return _Server((host, number), self._registry, self._event_stream, self._parts)
            except (OSError, OverflowError) as error:  # the latter: not between 0 and 65535
                last = error
        raise NoFreePort(
            f"no address for /metrics: {host} port {', '.join(map(str, ports))}: {last}. "
            "Set LIGHTLLM_OTEL_PORT to a free port (or LIGHTLLM_OTEL_HOST to an address of this machine)"
        ) from last

    @property
    def address(self) -> str:
        """host:port as a scraper on this machine would write it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def close(self) -> None:
        self._closed = True
        self._event_stream.close()
        self._server.shutdown()
        self._server.server_close()
