"""Operators inside CUDA graphs, in a trace of torch.profiler: between the plugin's timestamps, which it sees as kernels.

Python launches none of the kernels of a graph, so no range of the profiler is around them. An instrumented graph has a
timestamp at every boundary and ends with the kernel that publishes them; which operator lies between two of its timestamps is
known from its capture.
"""

from __future__ import annotations

import bisect
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

STAMP, PUBLISH = "lightllm_otel_stamp", "lightllm_otel_publish"
KERNELS = ("kernel", "gpu_memcpy", "gpu_memset")
GPU_RANGE = "gpu_user_annotation"

Event = Mapping[str, Any]


def is_ours(name: str) -> bool:
    return STAMP in name or PUBLISH in name


def from_its_start(trace: Mapping[str, Any]) -> dict[str, Any]:
    """Return the trace with times from its first event on. Times must be Decimal: since 1970 they have more digits than a
    float."""
    events = list(trace.get("traceEvents", ()))
    first = min(
        (Decimal(event["ts"]) for event in events if event.get("ph") == "X" and "ts" in event), default=Decimal(0)
    )
    moved = [
        {
            name: _small(value, first if name == "ts" and event.get("ph") != "M" else Decimal(0))
            for name, value in event.items()
        }
        for event in events
    ]
    rest = {name: _small(value, Decimal(0)) for name, value in trace.items() if name != "traceEvents"}
    if "baseTimeNanoseconds" in rest:
        rest["baseTimeNanoseconds"] = int(rest["baseTimeNanoseconds"]) + int(first * 1000)
    return {**rest, "traceEvents": moved}


def _small(value: Any, first: Decimal) -> Any:
    """Return the value without Decimals, which json does not write."""
    if isinstance(value, Mapping):
        return {name: _small(each, Decimal(0)) for name, each in value.items()}
    if isinstance(value, list):
        return [_small(each, Decimal(0)) for each in value]
    if isinstance(value, Decimal) or (first and isinstance(value, (int, float))):
        return float(Decimal(value) - first)
    return value


def ranges_in_graphs(trace: Mapping[str, Any], instrumented_graphs: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Return one range (as the profiler's own) per operator and stream of every whole replay of an instrumented graph.

    ``instrumented graphs``: of each the names of what its intervals are, in order. A replay is told by the number of its
    timestamps; where two instrumented graphs have as many but not the same operators, it has no ranges.
    """
    names: dict[int, Sequence[str]] = {}
    ambiguous = set()
    for graph_layout in instrumented_graphs:
        if names.setdefault(len(graph_layout) + 1, graph_layout) != graph_layout:
            ambiguous.add(len(graph_layout) + 1)
    replays = [
        (kernels, names[len(timestamps)], _intervals(timestamps, kernels))
        for timestamps, kernels in _replays(trace)
        if len(timestamps) in names and len(timestamps) not in ambiguous
    ]
    seen: dict[Any, Counter[tuple[int, ...]]] = defaultdict(Counter)
    for kernels, operators, intervals in replays:
        seen[_alike(kernels, operators)][intervals] += 1
    found: list[dict[str, Any]] = []
    for kernels, operators, _ in replays:
        # A timestamp can come late once in a while, after the next kernel's end: what most replays of the same kernels say.
        found += _ranges(kernels, seen[_alike(kernels, operators)].most_common(1)[0][0], operators)
    return found


def _alike(kernels: Sequence[Event], operators: Sequence[str]) -> Any:
    return tuple(operators), tuple(str(kernel["name"]) for kernel in kernels)


def _replays(trace: Mapping[str, Any]) -> Iterator[tuple[list[Event], list[Event]]]:
    """Return ``(timestamps, other kernels)`` from the first timestamp to the publishing kernel."""
    devices: dict[Any, list[Event]] = defaultdict(list)
    for event in trace.get("traceEvents", ()):
        if event.get("ph") == "X" and event.get("cat") in KERNELS and "dur" in event:
            devices[event.get("pid")].append(event)
    for events in devices.values():
        events.sort(key=lambda event: (event["ts"], event["dur"]))
        timestamps: list[Event] = []
        kernels: list[Event] = []
        for event in events:
            name = str(event["name"])
            if STAMP in name:
                timestamps.append(event)
            elif PUBLISH in name:
                yield timestamps, _of_launch(event, timestamps, kernels)
                timestamps, kernels = [], []
            elif timestamps:
                kernels.append(event)


def _of_launch(publish: Event, timestamps: Sequence[Event], kernels: list[Event]) -> list[Event]:
    """Return the kernels without what another stream runs beside the graph, where the profiler says which launch a kernel is
    of."""
    launch = _launch(publish)
    if launch is None or any(_launch(timestamp) != launch for timestamp in timestamps):
        return kernels
    return [kernel for kernel in kernels if _launch(kernel) == launch]


def _launch(event: Event) -> Any:
    return event.get("args", {}).get("correlation")


def _intervals(timestamps: Sequence[Event], kernels: Sequence[Event]) -> tuple[int, ...]:
    """Return the interval that each kernel ran in, from 1; 0 and the number of timestamps are outside.

    A timestamp waits for the last kernel of its operator, and the next kernel need not wait for the timestamp: both may run at
    the same time. So a kernel belongs to the first timestamp that starts when it has ended.
    """
    starts = [timestamp["ts"] for timestamp in timestamps]
    return tuple(bisect.bisect_left(starts, kernel["ts"] + kernel["dur"]) for kernel in kernels)


def _ranges(kernels: Sequence[Event], intervals: Sequence[int], operators: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Return one range around the kernels that follow each other in an interval, on each stream. They do not overlap on one: a
    kernel may begin before the one before it has ended.
    """
    lines: dict[Any, list[tuple[int, Event]]] = defaultdict(list)
    for kernel, at in zip(kernels, intervals):
        lines[kernel.get("tid")].append((at, kernel))
    for line, own in lines.items():
        runs = [(at, [kernel for _, kernel in run]) for at, run in itertools.groupby(own, key=lambda each: each[0])]
        following = [run[0]["ts"] for _, run in runs[1:]]
        for (at, run), next_begin in zip(runs, [*following, float("inf")]):
            if 0 < at <= len(operators):
                begin, end = run[0]["ts"], min(max(kernel["ts"] + kernel["dur"] for kernel in run), next_begin)
                yield {
                    "ph": "X", "cat": GPU_RANGE, "name": f"lightllm_otel: {operators[at - 1]}", "pid": run[0].get("pid"),
                    "tid": line, "ts": begin, "dur": max(end - begin, 0.0),
                }  # fmt: skip
