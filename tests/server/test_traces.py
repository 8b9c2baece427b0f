"""Traces of real servers: every endpoint, from the HTTP process over the model process to a receiver."""

from __future__ import annotations

import concurrent.futures
import json
import sys
import urllib.request
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="the extra otlp-grpc is not installed")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from receiver import Receiver, attributes_of, points_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Observed

NEW_TOKENS = 3
ENDPOINTS = ["/generate", "/generate_stream"]
OF_NEW_ALONE = [
    "/v1/completions",
    "/v1/chat/completions",
]  # OLD's router cannot take the text that its chat has for an id


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver("http/protobuf")
    yield made
    made.close()


def body_for(path: str, prompt: str) -> dict[str, Any]:
    if path.startswith("/v1/"):
        asked = {"messages": [{"role": "user", "content": prompt}]} if "chat" in path else {"prompt": prompt}
        return {"model": "m", "max_tokens": NEW_TOKENS, "temperature": 0.0, "ignore_eos": True, **asked}
    return {"inputs": prompt, "parameters": {"max_new_tokens": NEW_TOKENS, "do_sample": False, "ignore_eos": True}}


def ask(observed: Observed, path: str, prompt: str, headers: dict[str, str]) -> bytes:
    body = json.dumps(body_for(path, prompt)).encode()
    request = urllib.request.Request(observed.server.url + path, body, {"Content-Type": "application/json", **headers})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return bytes(answer.read())


def traced(number: int) -> dict[str, str]:
    return {"traceparent": f"00-{number:032x}-{number:016x}-01"}


def text_of(answer: bytes) -> Any:
    return json.loads(answer)["generated_text"]


@pytest.mark.parametrize("kind", [("old", 1), ("new", 1), ("new", 2)], ids=str)
def test_every_request_is_a_complete_trace_and_its_steps_lead_to_it(
    kind: tuple[str, int], observe: Callable[..., Observed], receiver: Receiver
) -> None:
    environment = {
        **receiver.environ, "OTEL_TRACES_SAMPLER": "parentbased_always_off", "OTEL_BSP_SCHEDULE_DELAY": "300",
        "OTEL_METRIC_EXPORT_INTERVAL": "500", "OTEL_SERVICE_NAME": "the-server",
    }  # fmt: skip
    observed = observe(kind, environment)
    paths = [*ENDPOINTS, *(OF_NEW_ALONE if kind[0] == "new" else [])]
    untraced = ask(observed, "/generate", "the same prompt", {})
    assert text_of(ask(observed, "/generate", "the same prompt", traced(100))) == text_of(untraced)

    with concurrent.futures.ThreadPoolExecutor(len(paths)) as pool:
        asked = [
            pool.submit(ask, observed, path, f"prompt {number} for {path}", traced(number))
            for number, path in enumerate(paths, start=1)
        ]
        assert all(each.result() for each in asked)
    ask(observed, "/generate", "nobody traces this one", {"traceparent": f"00-{200:032x}-{200:016x}-00"})

    wanted = {*range(1, len(paths) + 1), 100}
    requests = receiver.wait(lambda r: (found := servers(r)).keys() >= wanted and found, 30)
    assert requests.keys() == wanted  # and no other
    spans = receiver.spans()
    for number, request in requests.items():
        attributes = attributes_of(request)
        assert int(request.parent_span_id.hex(), 16) == number
        if number <= len(paths):
            path = paths[number - 1]
            assert attributes["url.path"] in (path, "/generate")  # OLD's /generate also answers streams
            assert attributes["gen_ai.operation.name"] == ("chat" if "chat" in path else "text_completion")
        assert (attributes["gen_ai.usage.output_tokens"], attributes["gen_ai.provider.name"]) == (
            NEW_TOKENS,
            "lightllm",
        )
        assert attributes["gen_ai.response.finish_reasons"] == ["length"]
        parts = [span for span in spans if span.parent_span_id == request.span_id]
        names = Counter(span.name.removeprefix("lightllm.") for span in parts)
        assert {"tokenise", "queue", "prefill", "decode", "tail"} == set(names), (number, names)
        assert sum(duration(span) for span in parts) == duration(request)
        assert 0 < attributes["gen_ai.server.time_to_first_token"] < duration(request) / 1e9
        assert attributes["gen_ai.usage.cache_read.input_tokens"] < attributes["gen_ai.usage.input_tokens"]

    # Every token after a request's first is a decode step; all are sampled here, and each links to who ran in it.
    steps = {span.span_id: span for span in spans if span.name == "lightllm.step decode"}
    ran = Counter(link.span_id for step in steps.values() for link in step.links)
    for request in requests.values():
        own_decode = sum(
            attributes_of(span)["lightllm.prefill.tokens"] == 1
            for span in spans
            if span.parent_span_id == request.span_id and span.name == "lightllm.prefill"
        )
        # A prompt of which all but one token is cached is computed in a decode step. Since v1.1.0 one more step may be launched
        # before the host knows that the request has ended.
        assert NEW_TOKENS - 1 <= ran[request.span_id] <= NEW_TOKENS - 1 + own_decode + (kind[0] == "new")
    operators = Counter(span.parent_span_id for span in spans if span.name == "lightllm.operator ffn")
    assert {operators[step] for step in steps} == {2}  # one for each layer
    assert "nobody traces" not in str(spans)

    # The same values on /metrics and at the receiver, once nothing changes any more.
    scraped = observed.settled()
    (total,) = receiver.wait(lambda r: [r.metrics[-1]] if r.metrics else [])
    receiver.wait(lambda r: r.metrics[-1] is not total)
    labels = frozenset({"phase": "decode", "mode": "eager"}.items())
    _, point = points_of(receiver.metrics[-1])["lightllm.gpu.step.duration", labels]
    assert point.count == scraped.total("lightllm_gpu_step_duration_seconds_count", phase="decode", mode="eager")
    said = attributes_of(receiver.metrics[-1].resource_metrics[0].resource)
    assert (said["service.name"], said["lightllm.tp"]) == ("the-server", kind[1])
    assert scraped.total("lightllm_otel_export_errors_total") == 0
    assert scraped.total("lightllm_otel_errors_total") == 0
    assert scraped.total("lightllm_otel_spans_dropped_total") == 0

    exporters = set(observed.exporters())
    reports = observed.reports()
    assert exporters
    assert {pid for pid, report in reports.items() if report["sdk"]} <= exporters


def servers(receiver: Receiver) -> dict[int, Any]:
    return {int(span.trace_id.hex(), 16): span for span in receiver.spans() if span.kind == 2}


def duration(span: Any) -> int:
    return int(span.end_time_unix_nano - span.start_time_unix_nano)
