"""A receiver of spans over OTLP, in this process."""

from __future__ import annotations

import http.client
import http.server
import threading
from typing import Any

SPAN_DELAY_MS, QUEUE = "1000", "65536"


class Receiver:
    """Takes everything, and reads nothing before it is asked to."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/v1/traces":
                    receiver.bodies.append(body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *words: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def environ(self) -> dict[str, str]:
        port = self._server.server_address[1]
        return {
            "OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "OTEL_TRACES_SAMPLER": "parentbased_always_off", "OTEL_METRICS_EXPORTER": "none",
            "OTEL_BSP_SCHEDULE_DELAY": SPAN_DELAY_MS, "OTEL_BSP_MAX_QUEUE_SIZE": QUEUE,
        }  # fmt: skip

    def spans(self) -> list[dict[str, Any]]:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        return [
            read(span)
            for body in self.bodies
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


def read(span: Any) -> dict[str, Any]:
    """A span as plain values, with the attributes that are looked at."""
    wanted = ("lightllm.request.id", "lightllm.step.number", "lightllm.phase")
    attributes = {each.key: each.value for each in span.attributes if each.key in wanted}
    return {
        "name": span.name, "trace": span.trace_id.hex(), "span": span.span_id.hex(), "parent": span.parent_span_id.hex(),
        "start": span.start_time_unix_nano, "end": span.end_time_unix_nano, "server": span.kind == 2,
        "links": [link.span_id.hex() for link in span.links],
        "request": attributes["lightllm.request.id"].string_value if "lightllm.request.id" in attributes else None,
        "step": attributes["lightllm.step.number"].int_value if "lightllm.step.number" in attributes else None,
    }  # fmt: skip
