"""Operators inside CUDA graphs, in a trace of torch.profiler: between the plugin's stamps, which it sees as kernels.

Python launches none of the kernels of a graph, so no range of the profiler is around them. A twin has a stamp at every boundary
and ends with the kernel that publishes them; which operator lies between two of its stamps is known from its capture.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
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
    """The trace with times from its first event on. Times must be Decimal: since 1970 they have more digits than a float."""
    events = list(trace.get("traceEvents", ()))
    first = min((Decimal(event["ts"]) for event in events if event.get("ph") == "X"), default=Decimal(0))
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
    """Without Decimals, which json does not write."""
    if isinstance(value, Mapping):
        return {name: _small(each, Decimal(0)) for name, each in value.items()}
    if isinstance(value, list):
        return [_small(each, Decimal(0)) for each in value]
    if isinstance(value, Decimal) or (first and isinstance(value, (int, float))):
        return float(Decimal(value) - first)
    return value


def ranges_in_graphs(trace: Mapping[str, Any], twins: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """One range (as the profiler's own) per operator and stream of every whole replay of a twin.

    ``twins``: of each the names of what its intervals are, in order. A replay is told by the number of its stamps; where two
    twins have as many but not the same operators, it has no ranges.
    """
    names: dict[int, Sequence[str]] = {}
    ambiguous = set()
    for twin in twins:
        if names.setdefault(len(twin) + 1, twin) != twin:
            ambiguous.add(len(twin) + 1)
    found: list[dict[str, Any]] = []
    for stamps, kernels in _replays(trace):
        operators = names.get(len(stamps))
        if operators is not None and len(stamps) not in ambiguous:
            found += _ranges(stamps, kernels, operators)
    return found


def _replays(trace: Mapping[str, Any]) -> Iterator[tuple[list[Event], list[Event]]]:
    """``(stamps, other kernels)`` from the first stamp to the publishing kernel."""
    devices: dict[Any, list[Event]] = defaultdict(list)
    for event in trace.get("traceEvents", ()):
        if event.get("ph") == "X" and event.get("cat") in KERNELS:
            devices[event.get("pid")].append(event)
    for events in devices.values():
        events.sort(key=lambda event: (event["ts"], event["dur"]))
        stamps: list[Event] = []
        kernels: list[Event] = []
        for event in events:
            name = str(event["name"])
            if STAMP in name:
                stamps.append(event)
            elif PUBLISH in name:
                yield stamps, _of_launch(event, stamps, kernels)
                stamps, kernels = [], []
            elif stamps:
                kernels.append(event)


def _of_launch(publish: Event, stamps: Sequence[Event], kernels: list[Event]) -> list[Event]:
    """Without what another stream runs beside the graph, where the profiler says which launch a kernel is of."""
    launch = _launch(publish)
    if launch is None or any(_launch(stamp) != launch for stamp in stamps):
        return kernels
    return [kernel for kernel in kernels if _launch(kernel) == launch]


def _launch(event: Event) -> Any:
    return event.get("args", {}).get("correlation")


def _ranges(stamps: Sequence[Event], kernels: Sequence[Event], operators: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A stamp waits for the last kernel of its operator, and the next kernel does not wait for the stamp: both run at the same
    time. So a kernel belongs to the first stamp that starts when it has ended.
    """
    starts = [stamp["ts"] for stamp in stamps]
    lines: dict[Any, dict[int, list[Event]]] = defaultdict(lambda: defaultdict(list))
    for kernel in kernels:
        lines[kernel.get("tid")][bisect.bisect_left(starts, kernel["ts"] + kernel["dur"])].append(kernel)
    for line, intervals in lines.items():
        inside = [(at, own) for at, own in sorted(intervals.items()) if 0 < at < len(stamps)]
        following = [own[0]["ts"] for _, own in inside[1:]]
        for (at, own), next_begin in zip(inside, [*following, float("inf")]):
            # A kernel may begin before the one before it has ended; ranges of a line must not overlap, though.
            end = min(max(kernel["ts"] + kernel["dur"] for kernel in own), next_begin)
            yield {
                "ph": "X", "cat": GPU_RANGE, "name": f"lightllm_otel: {operators[at - 1]}", "pid": own[0].get("pid"),
                "tid": line, "ts": own[0]["ts"], "dur": end - own[0]["ts"],
            }  # fmt: skip
