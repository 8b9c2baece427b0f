"""Trace context of a request."""

import itertools

import pytest

from lightllm_otel.frontend.trace_context import chosen, continued, parse
from lightllm_otel.otel_environment import OtelEnvironment, Sampler

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADER = f"00-{TRACE}-{PARENT}-01"


def otel_environment(**changes):
    return OtelEnvironment(traces=("otlp_proto_http",), **changes)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (HEADER, (TRACE, PARENT, True)),
        (f"00-{TRACE}-{PARENT}-00", (TRACE, PARENT, False)),
        (f"00-{TRACE}-{PARENT}-03", (TRACE, PARENT, True)),
        (f"cc-{TRACE}-{PARENT}-01-of-the-future", (TRACE, PARENT, True)),
        (f"00-{TRACE}-{PARENT}-01-more", None),
        (f"ff-{TRACE}-{PARENT}-01", None),
        (f"00-{'0' * 32}-{PARENT}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{PARENT}-01", None),
        ("00-1-2-01", None),
        ("", None),
    ],
)
def test_traceparent_is_read_as_w3c_has_it(header, expected):
    assert parse(header) == expected


def test_a_callers_trace_is_continued_under_a_span_of_its_own():
    context = continued({"traceparent": HEADER, "tracestate": "vendor=1"}, otel_environment())
    assert (context.trace_id, context.parent, context.state) == (TRACE, PARENT, "vendor=1")
    assert len(context.span_id) == 16
    assert context.span_id != PARENT


def test_a_caller_that_does_not_trace_is_followed():
    assert continued({"traceparent": HEADER[:-1] + "0"}, otel_environment()) is None


def test_a_caller_is_not_asked_where_the_sampler_is_not_parent_based():
    off, on = otel_environment(sampler=Sampler(0.0, follow=False)), otel_environment(sampler=Sampler(1.0, follow=False))
    assert continued({"traceparent": HEADER}, off) is None
    assert continued({"traceparent": HEADER[:-1] + "0"}, on).trace_id == TRACE


def test_without_a_caller_a_trace_begins_or_not_as_the_sampler_says():
    begun = continued({}, otel_environment())
    assert begun.parent == ""
    assert len(begun.trace_id) == 32
    assert continued({}, otel_environment(sampler=Sampler(0.0))) is None


def test_a_header_is_ignored_where_propagation_is_off():
    assert continued({"traceparent": HEADER}, otel_environment(propagate=False)).trace_id != TRACE


def test_a_tenth_is_about_a_tenth():
    numbers = itertools.count()
    drawn = lambda size: (next(numbers) * 0x9E3779B97F4A7C15 % 2 ** (8 * size)).to_bytes(size, "big")  # noqa: E731
    tenth = otel_environment(sampler=Sampler(0.1))
    taken = sum(continued({}, tenth, drawn) is not None for _ in range(2000))
    assert 150 < taken < 250


def test_the_sdk_would_decide_the_same():
    sampling = pytest.importorskip("opentelemetry.sdk.trace.sampling")
    for ratio in (0.0, 0.25, 1.0):
        sampler = sampling.TraceIdRatioBased(ratio)
        for trace_id in (1, 2**62, 2**63, 2**64 - 1, 2**127 + 2**61):
            theirs = sampler.should_sample(None, trace_id, "").decision.is_sampled()
            assert chosen(f"{trace_id:032x}", ratio) == theirs
