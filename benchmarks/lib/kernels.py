"""Traces of torch.profiler, which CUPTI made: kernels, and from kernels to seconds per operator. Pure functions."""

from __future__ import annotations

import bisect
import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

STAMP, PUBLISH = "lightllm_otel_stamp", "lightllm_otel_publish"  # the plugin's own kernels in an instrumented graph
MARKER = "spin_kernel"  # torch.cuda._sleep: launched before and after every step, to tell steps apart
ANNOTATION = "operator"  # annotations are named operator:OPERATOR:WHAT LEADS TO IT
COPIES = ("HtoD", "DtoH")  # of inputs and results, from and to the host; in no operator
GAP = "gap"


class Mismatch(ValueError):
    """Nothing can be compared: something else was seen than was supposed."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel, copy or memset on the GPU; nanoseconds. ``launch`` is CUPTI's correlation with the call on the host."""

    name: str
    start: int
    end: int
    launch: int = 0
    stream: int = 0

    @property
    def ours(self) -> bool:
        return STAMP in self.name or PUBLISH in self.name


@dataclasses.dataclass(frozen=True)
class Time:
    """Seconds per step: from end to end, and how much of that a kernel was running."""

    seconds: float = 0.0
    busy: float = 0.0

    def __add__(self, other: Time) -> Time:
        return Time(self.seconds + other.seconds, self.busy + other.busy)

    def over(self, steps: int) -> Time:
        return Time(self.seconds / steps, self.busy / steps)


Times = dict[str, Time]


def kernels_in(trace: dict[str, Any]) -> list[Kernel]:
    """Everything on the GPU in a Chrome trace of torch.profiler, by start. Times must be Decimal: see ``read_trace``."""
    kernels = [
        Kernel(
            event["name"],
            start,
            start + _nanoseconds(event["dur"]),
            int(about["correlation"]),
            int(about.get("stream", 0)),
        )
        for event in trace["traceEvents"]
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")
        for start, about in [(_nanoseconds(event["ts"]), event["args"])]
    ]
    return sorted(kernels, key=lambda kernel: (kernel.start, kernel.end))


def launches_in(trace: dict[str, Any]) -> dict[int, int]:
    """When each call on the host that launched something had returned: nanoseconds, by its correlation."""
    return {
        int(event["args"]["correlation"]): _nanoseconds(event["ts"]) + _nanoseconds(event["dur"])
        for event in trace["traceEvents"]
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in event.get("args", {})
    }


def read_trace(path: Path) -> dict[str, Any]:
    """Microseconds since boot, or since 1970, with three decimals: more digits than a float has."""
    trace: dict[str, Any] = json.loads(path.read_text(), parse_float=Decimal)
    return trace


def _nanoseconds(microseconds: Any) -> int:
    return int(Decimal(microseconds) * 1000)


def steps_between_markers(kernels: Sequence[Kernel]) -> list[list[Kernel]]:
    """The kernels of each step: a marker was launched before and after every one."""
    markers = [at for at, kernel in enumerate(kernels) if MARKER in kernel.name]
    if len(markers) % 2:
        raise Mismatch(f"{len(markers)} markers, an odd number")
    return [list(kernels[begin + 1 : end]) for begin, end in zip(markers[::2], markers[1::2])]


def between_timestamps(step: Sequence[Kernel]) -> list[list[Kernel]]:
    """The kernels of each interval of a step that replayed an instrumented graph; neither what was before it nor after.

    A timestamp waits for the last kernel of its operator, and the next kernel need not wait for the timestamp: both may run at
    the same time. So a kernel belongs to the first timestamp that starts when it has ended.
    """
    timestamps = [kernel.start for kernel in step if STAMP in kernel.name]
    intervals: list[list[Kernel]] = [[] for _ in range(len(timestamps) + 1)]
    for kernel in step:
        if not kernel.ours:
            intervals[bisect.bisect_left(timestamps, kernel.end)].append(kernel)
    return intervals[1:-1]


def timestamp_to_timestamp(step: Sequence[Kernel], operators: Sequence[str]) -> Times:
    """Return the very intervals that the plugin times, as CUPTI saw them: from the end of a timestamp to the end of the next."""
    ends = [kernel.end for kernel in step if STAMP in kernel.name]
    _check_intervals(max(len(ends) - 1, 0), operators)
    times: Times = {}
    for operator, begin, end in zip(operators, ends, ends[1:]):
        times[operator] = times.get(operator, Time()) + Time((end - begin) * 1e-9)
    return times


def kernels_of_graph(step: Sequence[Kernel], operators: Sequence[str]) -> list[tuple[str, str]]:
    """``(kernel, operator)`` in order, from the intervals' operators: what the plain graph must consist of."""
    intervals = between_timestamps(step)
    _check_intervals(len(intervals), operators)
    return [(kernel.name, operator) for operator, kernels in zip(operators, intervals) for kernel in kernels]


def kernels_of_graphs(steps: Sequence[Sequence[Kernel]], operators: Sequence[str]) -> list[tuple[str, str]]:
    """Return what most replays of an instrumented graph agree on: a timestamp can come late once in a while, after the next
    kernel's end."""
    seen = Counter(tuple(kernels_of_graph(step, operators)) for step in steps)
    agreed, times = seen.most_common(1)[0]
    if 2 * times <= len(steps):
        raise Mismatch(
            f"{len(steps)} replays of the same instrumented graph put kernels between timestamps in {len(seen)} ways"
        )
    return list(agreed)


def _check_intervals(seen: int, operators: Sequence[str]) -> None:
    if seen != len(operators):
        raise Mismatch(f"CUPTI saw {seen} intervals between timestamps, the instrumented graph has {len(operators)}")


def find(names: Sequence[str], step: Sequence[Kernel]) -> list[Kernel]:
    """The kernels of the step that have these names, one after the other. Raises Mismatch unless there is one such run."""
    own = [kernel.name for kernel in step]
    starts = [at for at in range(len(own) - len(names) + 1) if own[at : at + len(names)] == list(names)]
    if len(starts) == 1 and names:
        return list(step[starts[0] : starts[0] + len(names)])
    if starts:
        raise Mismatch(f"the {len(names)} kernels can be found {len(starts)} times in the step")
    common = max((_common(names, own[at:]) for at in range(len(own))), default=0)
    expected = names[common] if common < len(names) else "nothing"
    raise Mismatch(f"of the {len(names)} kernels the first {common} are in the step, then not {expected[:120]}")


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    return next((at for at, (a, b) in enumerate(zip(first, second)) if a != b), min(len(first), len(second)))


def end_to_end(kernels: Sequence[Kernel], operators: Sequence[str]) -> Times:
    """Per operator: from the end of what came before a kernel to its own end. All of it adds up to the whole."""
    times: Times = {}
    previous = kernels[0].start if kernels else 0
    for kernel, operator in zip(kernels, operators):
        slice_ = max(kernel.end - previous, 0)
        busy = max(kernel.end - max(kernel.start, previous), 0)
        times[operator] = times.get(operator, Time()) + Time(slice_ * 1e-9, busy * 1e-9)
        previous = max(previous, kernel.end)
    return times


def calls_of(operator: str, kernels: Sequence[Kernel], operators: Sequence[str]) -> list[float]:
    """Seconds of each of its calls, from the end of what came before to the end of its last kernel."""
    calls: list[float] = []
    previous, inside = kernels[0].start if kernels else 0, False
    for kernel, own in zip(kernels, operators):
        seconds = max(kernel.end - previous, 0) * 1e-9
        if own == operator:
            calls = [*calls[:-1], calls[-1] + seconds] if inside else [*calls, seconds]
        inside, previous = own == operator, max(previous, kernel.end)
    return calls


def mean(times: Sequence[Times]) -> Times:
    total: Times = {}
    for each in times:
        for operator, time_ in each.items():
            total[operator] = total.get(operator, Time()) + time_
    return {operator: time_.over(len(times)) for operator, time_ in total.items()}


def weighted_mean(times: Sequence[Times], weights: Sequence[float]) -> Times:
    """The mean of steps of which some count more than others."""
    total: Times = {}
    for each, weight in zip(times, weights):
        for operator, time_ in each.items():
            total[operator] = total.get(operator, Time()) + Time(weight * time_.seconds, weight * time_.busy)
    return {
        operator: Time(time_.seconds / sum(weights), time_.busy / sum(weights)) for operator, time_ in total.items()
    }


def attributed(trace: dict[str, Any]) -> dict[int, str]:
    """Which operator a call on the host (its correlation) launched for, in a trace with annotations around the slots.

    As in the plugin: what is launched between two operators belongs to what the next one says leads to it, and if it
    says nothing, to the next one itself.
    """
    spans: list[tuple[int, int, str, str]] = []
    for event in sorted(_annotations(trace), key=lambda event: (Decimal(event["ts"]), -Decimal(event["dur"]))):
        begin = _nanoseconds(event["ts"])
        if spans and begin < spans[-1][1]:
            continue  # nested in another, which counts it as its own
        _, operator, lead = event["name"].split(":")
        spans.append((begin, begin + _nanoseconds(event["dur"]), operator, lead or operator))
    begins = [span[0] for span in spans]

    def at(moment: int) -> str:
        before = bisect.bisect_right(begins, moment)
        if before and moment < spans[before - 1][1]:
            return spans[before - 1][2]
        return spans[before][3] if before < len(spans) else GAP

    return {
        int(event["args"]["correlation"]): at(_nanoseconds(event["ts"]))
        for event in trace["traceEvents"]
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in event.get("args", {})
    }


def _annotations(trace: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for event in trace["traceEvents"]:
        if event.get("cat") == "user_annotation" and event["name"].startswith(f"{ANNOTATION}:"):
            yield event


def launched(step: Sequence[Kernel]) -> list[Kernel]:
    """Without the copies from and to the host, which are in no operator."""
    return [kernel for kernel in step if not any(word in kernel.name for word in COPIES)]
