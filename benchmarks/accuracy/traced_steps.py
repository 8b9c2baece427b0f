"""Steps of a server as CUPTI saw them: which kernel is whose, and time per operator and part. Pure functions."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
from collections.abc import Sequence
from typing import Any

from kernels import MARKER, Kernel, Mismatch, Time, Times, end_to_end, launched
from model_servers import ENTER, FIRST_AT, FORWARD, LEAVE, SAMPLING_AT
from passes import GAP, SAMPLING

Owned = list[tuple[str, str]]  # kernel and operator, in order
OTHER, RESIDUAL, TAIL, AMBIGUOUS = "other", "residual", "tail", "ambiguous"
ADDS = ("add", "Add")  # in the name of a kernel between two operators: a residual


@dataclasses.dataclass(frozen=True)
class Traced:
    """A step's kernels, its marker first; and when its first operator and sampling were entered on the host.

    Entries are nanoseconds on the kernels' clock. In a graph the first operator is not entered: None. ``late``: kernels that the
    host launched when the GPU had ended all before them.
    """

    kernels: list[Kernel]
    first_entry: int | None = None
    sampling_entry: int | None = None
    late: frozenset[Kernel] = frozenset()

    def without_timestamps(self) -> Traced:
        return dataclasses.replace(self, kernels=[kernel for kernel in self.kernels if not kernel.ours])


def entries_of(noted: dict[str, Any], marker: Kernel, launches: dict[int, int]) -> tuple[int | None, int | None]:
    """Return both entries of a step. It was noted when the launch of its marker had returned, which CUPTI saw as well."""
    launched_at = launches.get(marker.launch)
    if launched_at is None:
        raise Mismatch("CUPTI did not see the launch of a step's marker")
    first, sampling = (
        launched_at + noted[name] - noted["at"] if name in noted else None for name in (FIRST_AT, SAMPLING_AT)
    )
    return first, sampling


def late_of(kernels: Sequence[Kernel], launches: dict[int, int]) -> frozenset[Kernel]:
    """The kernels for which the GPU had to wait: their launch returned when everything before them was over."""
    ends = itertools.accumulate((kernel.end for kernel in kernels), max)
    return frozenset(kernel for kernel, end in zip(kernels[1:], ends) if launches.get(kernel.launch, 0) > end)


def steps_behind_markers(kernels: Sequence[Kernel]) -> list[list[Kernel]]:
    """The kernels of each step: from behind its marker to the next one, its marker being the first.

    The first marker of a trace lies on the default stream, on which the host asks for new requests meanwhile. What else runs
    there, and NCCL's kernels on a stream of their own, belong to no step of a single rank.
    """
    markers_seen = [kernel for kernel in kernels if MARKER in kernel.name]
    if len(markers_seen) < 2:
        raise Mismatch(f"{len(markers_seen)} markers in the trace")
    default = markers_seen[0].stream
    stream = markers_seen[1].stream
    if default == stream:
        raise Mismatch("the model's forwards run on the default stream")
    inside = [
        kernel for kernel in kernels
        if kernel.stream != default and not (kernel.stream != stream and "nccl" in kernel.name.lower())
    ]  # fmt: skip
    starts = [at for at, kernel in enumerate(inside) if MARKER in kernel.name and kernel.stream == stream]
    return [inside[begin:end] for begin, end in zip(starts, [*starts[1:], len(inside)])]


def owned_steps(kernels: Sequence[Kernel], calls: Sequence[Sequence[str]]) -> list[Owned]:
    """``(kernel, operator)`` of each step of a trace with a marker for each of ``calls``.

    Copies from and to the host are left out.
    """
    found: list[Owned] = []
    markers_seen = sum(MARKER in kernel.name for kernel in kernels) - 1  # without the one on the default stream
    if markers_seen != len(calls):
        raise Mismatch(f"CUPTI saw {markers_seen} markers of {len(calls)}")
    inside = [kernel for step in steps_behind_markers(kernels) for kernel in step]
    at, open_, last = -1, [], GAP
    for kernel in inside:
        if MARKER in kernel.name:
            at += 1
            what, operator = calls[at]
            if what == FORWARD:
                found.append([])
                open_, last = [], GAP
            elif what == ENTER:
                open_.append(operator)
            elif what == LEAVE:
                last = open_.pop()
        elif found and launched([kernel]):
            found[-1].append((kernel.name, open_[0] if open_ else _between(last, kernel.name)))
    return found


def _between(last: str, name: str) -> str:
    """Who owns a kernel that no method launched, behind operator ``last``."""
    if last == GAP or last == "lm_head":
        return GAP
    if last == SAMPLING:
        return TAIL
    return RESIDUAL if any(word in name for word in ADDS) else OTHER


def carried_over(expected: Owned, names: Sequence[str]) -> list[str]:
    """Return the operator of each kernel of another step, whose kernels are nearly those of ``expected``.

    A kernel that is not in ``expected`` belongs to the operator in which it stands. Before the first operator a graph's inputs
    are copied. What could be of two operators is ``AMBIGUOUS``.
    """
    owners: list[str] = []
    matcher = difflib.SequenceMatcher(None, [name for name, _ in expected], list(names), autojunk=False)
    for what, first, last, begin, end in matcher.get_opcodes():
        if what == "equal":
            owners += [operator for _, operator in expected[first:last]]
            continue
        around = {operator for _, operator in expected[max(first - 1, 0) : last + 1]}
        inside = {operator for _, operator in expected[first:last]} or around
        if begin == end:
            continue
        if set(owners) <= {GAP} and GAP in inside:
            inside = {GAP}
        owners += [*(inside if len(inside) == 1 else {AMBIGUOUS})] * (end - begin)
    return owners


@dataclasses.dataclass(frozen=True)
class Seen:
    """One step as CUPTI saw it: time by operator, by part, and the whole from the end of its marker."""

    operators: Times
    parts: dict[str, float]
    seconds: float
    busy: float


def seen_of(traced: Traced, expected: Owned) -> Seen:
    """A step of LightLLM's own graph, or without one. ``expected``: of the same kind of step. Raises Mismatch.

    Before the model, and between it and the entry of sampling, the GPU waits for the host (``gap``), or works (``other``; all
    behind sampling is, too). Between two kernels of which the host launched the second in time, it works. Where it waits after
    an operator was entered on the host, it waits for that operator's first kernel.
    """
    step = traced.kernels
    marker, kernels = step[0], launched(step[1:])
    owners = carried_over(expected, [kernel.name for kernel in kernels])
    in_model = [at for at, owner in enumerate(owners) if owner not in (GAP, SAMPLING, TAIL)]
    if not in_model:
        raise Mismatch("no kernel of an operator in the step")
    first, last = in_model[0], in_model[-1] + 1
    operators = end_to_end(kernels[first:last], owners[first:last])
    begin, end = marker.end, max(kernel.end for kernel in step)
    sampled = [kernel for kernel, owner in zip(kernels, owners) if owner == SAMPLING] or [kernels[last - 1]]
    model_end, sampling_end = kernels[last - 1].end, max(kernel.end for kernel in sampled)
    model_start = _entered(traced.first_entry, begin, kernels[first].start)
    sampling_start = _entered(traced.sampling_entry, model_end, max(sampled[0].start, model_end))
    waited = (kernels[first].start - model_start) * 1e-9
    operators[owners[first]] += Time(waited, busy_seconds(step[1:], model_start, kernels[first].start))
    around = [(begin, model_start), (model_end, sampling_start)]
    whole_around = sum(until - since for since, until in around) * 1e-9
    waited_around = sum(waiting_seconds(traced, since, until) for since, until in around)
    parts = {
        GAP: waited_around,
        # Behind sampling tokens are scattered and copied to the host.
        OTHER: operators.get(OTHER, Time()).seconds + whole_around - waited_around + (end - sampling_end) * 1e-9,
        RESIDUAL: operators.get(RESIDUAL, Time()).seconds, AMBIGUOUS: operators.get(AMBIGUOUS, Time()).seconds,
        SAMPLING: (sampling_end - sampling_start) * 1e-9,
    }  # fmt: skip
    return Seen(operators, parts, (end - begin) * 1e-9, busy_seconds(step[1:]))


def _entered(entry: int | None, earliest: int, first_kernel: int) -> int:
    """When an operator begins on the GPU that was entered on the host at ``entry``; None: with its first kernel."""
    return first_kernel if entry is None else min(max(entry, earliest), first_kernel)


def waiting_seconds(traced: Traced, since: float, until: float) -> float:
    """How long the GPU waited between two times for late launches of the host."""
    total, progress = 0.0, since
    for kernel in traced.kernels[1:]:
        if kernel in traced.late:
            total += max(min(kernel.start, until) - progress, 0)
        if kernel.start >= until:
            break
        progress = max(progress, kernel.end)
    return total * 1e-9


def busy_seconds(kernels: Sequence[Kernel], since: float = 0, until: float = math.inf) -> float:
    """How long at least one of the kernels was running, between two times of theirs."""
    total, progress = 0.0, since
    for kernel in kernels:
        end = min(kernel.end, until)
        total += max(end - max(kernel.start, progress), 0)
        progress = max(progress, end)
    return total * 1e-9
