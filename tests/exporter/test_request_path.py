"""A request's whole way without a GPU: HTTP process, model process and exporter are processes, as in a server."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="the extra otlp-grpc is not installed")

from receiver import Receiver, attributes_of

from lightllm_otel.records.folder import LOCK_NAME, lock_owner

HERE = Path(__file__).resolve().parent
REQUESTS = 12


@pytest.fixture(params=["http/protobuf", "grpc"])
def receiver(request):
    made = Receiver(request.param)
    yield made
    made.close()


@pytest.fixture
def server(tmp_path, receiver, plain_environment):
    """``(steps, receiver)``: which requests ran in which decode step, and who got the spans."""
    environ = {
        **plain_environment, **receiver.environ, "LIGHTLLM_OTEL": "1", "LIGHTLLM_OTEL_DIR": str(tmp_path / "dir"),
        "LIGHTLLM_OTEL_SAMPLE_EVERY": "1", "LIGHTLLM_OTEL_RING_MIB": "1", "_NCCL_PORT_": "8080",
        "OTEL_BSP_SCHEDULE_DELAY": "200", "OTEL_METRIC_EXPORT_INTERVAL": "500", "PYTHONPATH": f"{HERE.parent}:{HERE.parents[1]}",
    }  # fmt: skip
    command = [sys.executable, str(HERE / "path_process.py"), "http", str(REQUESTS)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=environ, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield {int(number): ran for number, ran in json.loads(line).items()}
    finally:
        exporter = lock_owner(tmp_path / "dir" / "127.0.0.1-8080-dp0" / LOCK_NAME)
        process.communicate("\n", timeout=30)
        if exporter:
            with contextlib.suppress(ProcessLookupError):
                os.kill(exporter, signal.SIGTERM)


def test_every_trace_is_complete_and_every_link_right(server, receiver):
    receiver.wait(lambda r: sum(span.kind == 2 for span in r.spans()) == REQUESTS, 20)
    receiver.wait(lambda r: {attributes_of(s)["lightllm.step.number"] for s in r.spans() if s.name == "lightllm.step decode"}
                  >= set(server), 20)  # fmt: skip
    spans = receiver.spans()
    requests = {span.span_id: span for span in spans if span.kind == 2}
    assert sorted(span.trace_id.hex() for span in requests.values()) == [f"{n:032x}" for n in range(1, REQUESTS + 1)]
    number_of = {}
    for request in requests.values():
        assert request.parent_span_id == request.trace_id[8:]  # the caller's
        attributes = attributes_of(request)
        number_of[request.span_id] = int(attributes["lightllm.request.id"])
        assert (attributes["gen_ai.usage.input_tokens"], attributes["gen_ai.usage.output_tokens"]) == (30, 4)
        assert attributes["gen_ai.usage.cache_read.input_tokens"] == 0
        parts = sorted((s for s in spans if s.parent_span_id == request.span_id), key=lambda s: s.start_time_unix_nano)
        assert Counter(part.name for part in parts) == {
            "lightllm.tokenise": 1, "lightllm.queue": 1, "lightllm.prefill": 2, "lightllm.decode": 1, "lightllm.tail": 1,
        }  # fmt: skip
        assert {part.trace_id for part in parts} == {request.trace_id}
        assert sum(part.end_time_unix_nano - part.start_time_unix_nano for part in parts) == (
            request.end_time_unix_nano - request.start_time_unix_nano
        )
    steps = {}
    for span in spans:
        if span.name == "lightllm.step decode":
            linked = sorted(number_of[link.span_id] for link in span.links)
            steps[attributes_of(span)["lightllm.step.number"]] = linked
            assert all(requests[link.span_id].trace_id == link.trace_id for link in span.links)
    assert {number: steps[number] for number in server} == {number: sorted(ran) for number, ran in server.items()}
    known = {span.span_id for span in spans}
    assert all(span.parent_span_id in known for span in spans if span.parent_span_id and span.kind != 2)
    assert receiver.wait(lambda r: r.metrics)  # the same receiver gets the metrics
