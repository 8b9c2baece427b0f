"""Spans of one sampled step and of its operators.

A step is a trace of its own, with links to the requests that ran in it: one step serves many requests.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lightllm_otel.exporter.spans import NANO, OPERATOR, STEP, Context, NewId, SpanData
from lightllm_otel.records import layout
from lightllm_otel.records.vocabulary import IdleReason, Mode, Operator, Phase
from lightllm_otel.reduce.wallclock import Start


def step_span(step: Any, intervals: np.ndarray, start: Start, own: Context, links: tuple[Context, ...]) -> SpanData:
    """Return the span of a step, with the seconds of each of its operators."""
    phase = Phase.of(int(step["phase"])).value
    sums = np.bincount(intervals["operator"], intervals["seconds"], len(Operator))
    attributes: dict[str, Any] = {
        "lightllm.phase": phase,
        "lightllm.mode": Mode.of(int(step["mode"])).value,
        "lightllm.step.number": int(step["number"]),
        "lightllm.step.requests": int(step["requests"]),
        "lightllm.step.tokens": int(step["tokens"]),
        "lightllm.step.context": int(step["context"]),
        "lightllm.step.padded": int(step["padded"]),
        "lightllm.gpu.idle_before": float(step["idle_seconds"]),
        "lightllm.gpu.idle_reason": IdleReason.of(int(step["idle_reason"])).value,
        "lightllm.clock.error": start.error,
        **{
            f"lightllm.operator.{Operator.of(code).value}.duration": float(seconds)
            for code, seconds in enumerate(sums)
            if seconds
        },
    }
    began = int(start.seconds * NANO)
    return SpanData(f"{STEP}{phase}", own, None, began, began + int(float(step["seconds"]) * NANO), attributes, links)


def operator_spans(step: Any, intervals: np.ndarray, start: Start, own: Context, new_id: NewId) -> list[SpanData]:
    """Return a span for each call of a step, one after the other, as the ring has them.

    The ring has one interval, the gap, for all pauses between them. So a call may lie by up to the step's gap earlier or later
    than it was; how long it took is exact.
    """
    began = int(start.seconds * NANO)
    limit = began + int(float(step["seconds"]) * NANO)
    ends = np.cumsum(intervals["seconds"].astype(np.float64))
    spans = []
    for interval, end in zip(intervals, ends.tolist()):
        operator = Operator.of(int(interval["operator"]))
        if operator is Operator.GAP:
            continue
        seconds = float(interval["seconds"])
        attributes: dict[str, Any] = {"lightllm.operator": operator.value}
        if interval["layer"] >= 0:
            attributes["lightllm.layer"] = int(interval["layer"])
        if interval["payload_bytes"]:
            attributes["lightllm.collective.payload"] = int(interval["payload_bytes"])
        if interval["flags"] & layout.STARVED:
            attributes["lightllm.starved"] = True
        first, last = (min(began + int(at * NANO), limit) for at in (end - seconds, end))
        context = Context(own.trace_id, new_id(8))
        spans.append(SpanData(f"{OPERATOR}{operator.value}", context, own, first, last, attributes))
    return spans
