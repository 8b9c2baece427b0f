"""The exporter's HTTP side: ``/metrics`` in the format the scraper asks for, and a page that says where to look."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

FIRST_PORT, LAST_PORT = 9464, 9479
PAGE = b"""<!doctype html><html lang="en"><meta charset="utf-8"><title>lightllm-otel</title>
<h1>lightllm-otel</h1><p>GPU time of every operator of a LightLLM server.</p>
<ul><li><a href="/metrics">/metrics</a>: for Prometheus</li>
<li><code>lightllm-otel top</code>: the same as a live table in a terminal</li></ul></html>
"""
Answer = Callable[[str, list[tuple[str, str]]], Any]


class NoFreePort(OSError):
    """Every port that may be used is taken; the message says what to do."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # Newer Pythons let HTTP servers share a port; two exporters must not both believe that they have it.
    allow_reuse_port = False

    def server_bind(self) -> None:
        """Not HTTPServer's, which looks its own host name up: that takes seconds where there is no DNS."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """A scrape every few seconds is no news."""


class MetricsServer:
    """Serves ``registry`` on the first free port of 9464–9479, or on ``port``. Raises NoFreePort."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int | None) -> None:
        self._registry = registry
        ports = [port] if port else range(FIRST_PORT, LAST_PORT + 1)
        self._server = self._bind(host, ports)
        self.host, self.port = host, int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True, name="metrics")
        self._thread.start()

    def _bind(self, host: str, ports: Iterable[int]) -> _Server:
        last: OSError | None = None
        for number in ports:
            try:
                server = _Server((host, number), _Quiet)
            except OSError as error:
                last = error
                continue
            server.set_app(self._answer)
            return server
        raise NoFreePort(
            f"no address for /metrics: {host} port {', '.join(map(str, ports))}: {last}. "
            "Set LIGHTLLM_OTEL_PORT to a free port (or LIGHTLLM_OTEL_HOST to an address of this machine)"
        ) from last

    def _answer(self, environ: dict[str, Any], start: Answer) -> list[bytes]:
        path = environ.get("PATH_INFO", "/")
        if path == "/metrics":
            encode, content_type = choose_encoder(environ.get("HTTP_ACCEPT", ""))
            start("200 OK", [("Content-Type", content_type)])
            return [encode(self._registry)]
        if path == "/":
            start("200 OK", [("Content-Type", "text/html; charset=utf-8")])
            return [PAGE]
        start("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"there is / and /metrics\n"]

    @property
    def address(self) -> str:
        """host:port as a scraper on this machine would write it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
