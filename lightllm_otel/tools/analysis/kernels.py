"""Kernels of each operator, from a trace of torch.profiler with our operators as ranges."""

from __future__ import annotations

import bisect
import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from lightllm_otel.tools.analysis.timestamped import GPU_RANGE, KERNELS, is_ours

PREFIX = "lightllm_otel: "
OUTSIDE = "outside operators"
STAMPS = "the plugin's timestamps"
_CPU_RANGE = "user_annotation"


@dataclasses.dataclass(frozen=True)
class Kernel:
    operator: str
    name: str
    calls: int
    seconds: float


def kernels(trace: Mapping[str, Any]) -> list[Kernel]:
    """Return the kernels, the longest first. Where the trace has no GPU (a server on the CPU), torch's own operations stand for
    kernels."""
    events = [event for event in trace.get("traceEvents", ()) if event.get("ph") == "X"]
    found = [event for event in events if event.get("cat") in KERNELS]
    category = GPU_RANGE
    if not found:
        found, category = _outermost(event for event in events if event.get("cat") == "cpu_op"), _CPU_RANGE
    spans = _spans(event for event in events if event.get("cat") == category)
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0.0])
    for event in found:
        name = str(event["name"])
        operator = STAMPS if is_ours(name) else _inside(spans.get(_line(event), []), float(event["ts"]))
        own = sums[operator, name]
        own[0] += 1
        own[1] += float(event.get("dur", 0.0))
    rows = [Kernel(operator, name, int(calls), took / 1e6) for (operator, name), (calls, took) in sums.items()]
    return sorted(rows, key=lambda row: -row.seconds)


def _line(event: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the stream of a device, or the thread."""
    return event.get("pid"), event.get("tid")


Span = tuple[float, float, str]


def _spans(ranges: Iterable[Mapping[str, Any]]) -> dict[tuple[Any, Any], list[Span]]:
    """Return (start, end, operator) in microseconds by line, in order. An operator in an operator counts as the outer one."""
    lines: dict[tuple[Any, Any], list[Span]] = defaultdict(list)
    for event in ranges:
        name = str(event["name"])
        if name.startswith(PREFIX):
            start = float(event["ts"])
            lines[_line(event)].append(
                (start, start + float(event.get("dur", 0.0)), name[len(PREFIX) :].split(maxsplit=1)[0])
            )
    for line, spans in lines.items():
        spans.sort(key=lambda span: (span[0], -span[1]))
        outer: list[Span] = []
        for span in spans:
            if not outer or span[0] >= outer[-1][1]:
                outer.append(span)
        lines[line] = outer
    return lines


def _inside(spans: list[Span], at: float) -> str:
    place = bisect.bisect_right(spans, (at, float("inf"), "")) - 1
    return spans[place][2] if place >= 0 and at < spans[place][1] else OUTSIDE


def _outermost(events: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the events without those that another one on the same line has called."""
    kept: list[Mapping[str, Any]] = []
    ends: dict[tuple[Any, Any], float] = {}
    for event in sorted(events, key=lambda event: (float(event["ts"]), -float(event.get("dur", 0.0)))):
        start = float(event["ts"])
        if start >= ends.get(_line(event), float("-inf")):
            kept.append(event)
            ends[_line(event)] = start + float(event.get("dur", 0.0))
    return kept
