"""A receiver of OpenTelemetry's protocol in this process, by HTTP and by gRPC, that keeps what it is sent.

``mood``: ``take`` it, ``refuse`` it (400), or ``hang`` until :meth:`Receiver.close`.
"""

from __future__ import annotations

import gzip
import socket
import threading
import time
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

REQUESTS = {
    "/v1/metrics": metrics_service_pb2.ExportMetricsServiceRequest,
    "/v1/traces": trace_service_pb2.ExportTraceServiceRequest,
}


class Receiver:
    """``metrics``, ``traces``: the requests that came, decoded. ``protocol``: http/protobuf or grpc."""

    def __init__(self, protocol: str, port: int = 0) -> None:
        self.protocol, self.mood = protocol, "take"
        self.metrics: list = []
        self.traces: list = []
        self.refused = 0
        self._closed = threading.Event()
        self.port = self._grpc(port) if protocol == "grpc" else self._http(port)

    @property
    def environ(self) -> dict[str, str]:
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": self.protocol,
        }

    def _kept(self, path: str, request) -> bool:
        if self.mood == "hang":
            self._closed.wait(30)
        if self.mood != "take":
            self.refused += 1
            return False
        (self.metrics if path == "/v1/metrics" else self.traces).append(request)
        return True

    def _http(self, port: int) -> int:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                taken = receiver._kept(self.path, REQUESTS[self.path].FromString(body))
                self.send_response(200 if taken else 400)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self._stop = lambda: (server.shutdown(), server.server_close())
        return server.server_address[1]

    def _grpc(self, port: int) -> int:
        receiver = self

        class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
            def Export(self, request, context):
                if not receiver._kept("/v1/metrics", request):
                    context.abort(grpc.StatusCode.INVALID_ARGUMENT, "refused")
                return metrics_service_pb2.ExportMetricsServiceResponse()

        class Traces(trace_service_pb2_grpc.TraceServiceServicer):
            def Export(self, request, context):
                if not receiver._kept("/v1/traces", request):
                    context.abort(grpc.StatusCode.INVALID_ARGUMENT, "refused")
                return trace_service_pb2.ExportTraceServiceResponse()

        server = grpc.server(futures.ThreadPoolExecutor(2))
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(), server)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), server)
        bound = server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        self._stop = lambda: server.stop(0).wait(5)
        return bound

    def wait(self, what, seconds: float = 10.0):
        """What ``what`` answers, as soon as that is something."""
        deadline = time.monotonic() + seconds
        while not (found := what(self)):
            assert time.monotonic() < deadline, f"not received within {seconds} s"
            time.sleep(0.02)
        return found

    def spans(self) -> list:
        return [
            span
            for request in self.traces
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def close(self) -> None:
        self._closed.set()
        self._stop()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def points_of(request) -> dict:
    """{(name, attributes): (metric, point)} of one request for metrics."""
    found = {}
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                data = getattr(metric, metric.WhichOneof("data"))
                for point in data.data_points:
                    found[metric.name, frozenset(attributes_of(point).items())] = metric, point
    return found


def attributes_of(thing) -> dict:
    return {each.key: value_of(each.value) for each in thing.attributes}


def value_of(value):
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(each) for each in value.array_value.values]
    return getattr(value, kind)
