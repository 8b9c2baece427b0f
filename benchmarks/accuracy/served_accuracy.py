"""Operator times of an instrumented server beside NVIDIA's CUPTI, which watches the same model process serve.

One decode step in two replays the plugin's instrumented graph, by live control; the others replay LightLLM's own graph.
First without CUPTI, then with it. Which kernel of LightLLM's graph is which operator is found without the plugin: steps
without graphs, with a marker at the entry and end of each operator's method (markers.py), have the same kernels.

An operator lasts from the end of the previous operator's last kernel to the end of its own. Steps get longer with their
context, so each instrumented step is compared with the two of LightLLM's own around it.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fixed_batch
import numpy as np
from comparison import as_ms, as_percent, as_us, bookkeeping, shares
from kernels import (
    MARKER,
    Kernel,
    Mismatch,
    Time,
    Times,
    end_to_end,
    kernels_in,
    launched,
    launches_in,
    read_trace,
    weighted_mean,
)  # fmt: skip
from model_servers import ENTER, FIRST_AT, FORWARD, LEAVE, SAMPLING_AT, Arm, ModelServer
from passes import GAP, PLAIN, PREFILL, SAMPLING, TWIN, Ours, Step, label_of, ours
from recorded import match, recorded
from streams import Request, together

Rows = list[dict[str, Any]]
Owned = list[tuple[str, str]]  # kernel and operator, in order
OTHER, RESIDUAL, TAIL, AMBIGUOUS = "other", "residual", "tail", "ambiguous"
PARTS = (GAP, OTHER, RESIDUAL, SAMPLING)  # of a step, beside its operators
ADDS = ("add", "Add")  # in the name of a kernel between two operators: a residual
DROPPED = 8  # steps at the start of a batch
WAIT_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class Amount:
    """``steps``: decode steps of a batch, of which about half are instrumented. A trace of 100 has 60,000 kernels."""

    batches: tuple[int, ...] = (1, 20, 64)
    steps: int = 100
    input_tokens: int = 256
    prefills: int = 6
    prefill_tokens: int = 1024
    annotated_steps: int = 12


TINY = Amount(batches=(1, 2), steps=16, input_tokens=8, prefills=2, prefill_tokens=16, annotated_steps=3)


def measure(server: ModelServer, amount: Amount, about: dict[str, Any], keep: Any) -> None:
    """Every batch without CUPTI; then, when it will stay loaded, every batch with it. ``keep`` is given rows."""
    server.watch(0, cpu_time=False)
    server.hold(Arm.EVERY_SECOND)
    alone: dict[int, tuple[list[Step], Any]] = {}
    for batch in amount.batches:
        steps, _, tokens = _observe(server, amount, batch, trace=None)
        alone[batch] = steps, tokens
    for batch in amount.batches:
        case = {**about, "batch": batch}
        problem = {**case, "mode": "decode graph"}
        try:
            expected = annotated(server, amount, batch)
            steps, seen, tokens = _observe(server, amount, batch, server.folder / "trace.json")
            rows = compare(case, alone[batch], (steps, tokens), seen, expected, server.ring()["stamp_cost"])
        except (Mismatch, RuntimeError) as error:
            rows = [{**problem, "problem": str(error)}]
        keep(rows)
    server.hold(Arm.DEFAULT)


# Running ---------------------------------------------------------------------------------------------------------------


def _requests(amount: Amount, batch: int) -> list[Request]:
    texts = fixed_batch.prompts(batch, amount.input_tokens, 1500)
    return [Request(text, amount.steps + 4 + batch // 8) for text in texts]


def _observe(
    server: ModelServer, amount: Amount, batch: int, trace: Path | None
) -> tuple[list[Step], list[Traced], Any]:
    """Run a batch, and for batch 1 some prompts before it.

    Returns recorded steps; where traced, their kernels and entries; and tokens.
    """
    began = time.time()
    if trace is not None:
        server.ask("start_trace")
    try:
        for number in range(amount.prefills if batch == 1 else 0):
            text = fixed_batch.prompts(1, amount.prefill_tokens, 1700 + number)[0]
            together(server.port, [Request(text, 1)])
        streams = together(server.port, _requests(amount, batch))
    finally:
        noted = server.ask("stop_trace", path=str(trace))["forwards"] if trace is not None else []
    time.sleep(WAIT_SECONDS)
    steps = recorded(server.folder / "record", since=began)
    tokens = [each.token_ids for each in streams]
    if trace is None:
        return steps, [], tokens
    read = read_trace(trace)
    kernels, launches = steps_behind_markers(kernels_in(read)), launches_in(read)
    if len(kernels) != len(noted):
        raise Mismatch(f"CUPTI saw {len(kernels)} forwards of {len(noted)}")
    pairs = match([each["at"] * 1e-9 for each in noted], [float(step["wall_time"]) for step, _ in steps])
    traced = [
        Traced(kernels[at], *entries_of(noted[at], kernels[at][0], launches), late_of(kernels[at], launches))
        for at, _ in pairs
    ]
    return [steps[at] for _, at in pairs], traced, tokens


def annotated(server: ModelServer, amount: Amount, batch: int) -> dict[str, Owned]:
    """Return which kernel is which operator, of a decode step without graphs and of a prefill; in order."""
    path = server.folder / "annotated.json"
    server.ask("start_trace")
    server.ask("annotate", on=True)
    try:
        length = amount.prefill_tokens if batch == 1 else amount.input_tokens
        texts = fixed_batch.prompts(batch, length, 1900)
        together(server.port, [Request(text, amount.annotated_steps) for text in texts])
    finally:
        calls = server.ask("annotate", on=False)["calls"]
        noted = server.ask("stop_trace", path=str(path))["forwards"]
    steps = owned_steps(kernels_in(read_trace(path)), calls)
    if len(steps) != len(noted):
        raise Mismatch(f"with markers: CUPTI saw {len(steps)} forwards of {len(noted)}")
    found: dict[str, Owned] = {}
    for step, note in zip(steps, noted):
        # The last of each kind: the first compiles kernels. Requests come one after the other, and end so.
        if note["prefill"] or note["batch"] == batch:
            found[PREFILL if note["prefill"] else PLAIN] = step
    if PLAIN not in found:
        raise Mismatch(f"with markers: no decode step had {batch} requests")
    return found


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

    def without_stamps(self) -> Traced:
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


# From a trace ----------------------------------------------------------------------------------------------------------


def steps_behind_markers(kernels: Sequence[Kernel]) -> list[list[Kernel]]:
    """The kernels of each step: from behind its marker to the next one, its marker being the first.

    The first marker of a trace lies on the default stream, on which the host asks for new requests meanwhile. What else runs
    there, and NCCL's kernels on a stream of their own, belong to no step of a single rank.
    """
    marks = [kernel for kernel in kernels if MARKER in kernel.name]
    if len(marks) < 2:
        raise Mismatch(f"{len(marks)} markers in the trace")
    default = marks[0].stream
    stream = marks[1].stream
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
    marks = sum(MARKER in kernel.name for kernel in kernels) - 1  # without the one on the default stream
    if marks != len(calls):
        raise Mismatch(f"CUPTI saw {marks} markers of {len(calls)}")
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
    """What CUPTI saw of one step: time by operator, by part, and the whole from the end of its marker."""

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
    total, reached = 0.0, since
    for kernel in traced.kernels[1:]:
        if kernel in traced.late:
            total += max(min(kernel.start, until) - reached, 0)
        if kernel.start >= until:
            break
        reached = max(reached, kernel.end)
    return total * 1e-9


def busy_seconds(kernels: Sequence[Kernel], since: float = 0, until: float = math.inf) -> float:
    """How long at least one of the kernels was running, between two times of theirs."""
    total, reached = 0.0, since
    for kernel in kernels:
        end = min(kernel.end, until)
        total += max(end - max(kernel.start, reached), 0)
        reached = max(reached, end)
    return total * 1e-9


# Comparing -------------------------------------------------------------------------------------------------------------


def beside(labels: Sequence[str]) -> list[tuple[int, int, float]]:
    """``(instrumented step, own step, weight)``: each instrumented step beside the own ones before and behind it.

    With two of them weighted by how near they are, what grows by the same from step to step cancels.
    """
    plain = [at for at, label in enumerate(labels) if label == PLAIN]
    found = []
    for at, label in enumerate(labels):
        if label != TWIN or at < DROPPED:
            continue
        before = [other for other in plain if other < at]
        behind = [other for other in plain if other > at]
        if before and behind:
            low, high = before[-1], behind[0]
            found += [(at, low, (high - at) / (high - low)), (at, high, (at - low) / (high - low))]
    return found


def full_batch(steps: Sequence[Step], batch: int, *more: Sequence[Any]) -> tuple[list[Any], ...]:
    """Leave out decode steps of another batch; prefills stay apart. Returns the steps and what lies beside them."""
    chosen = [
        at for at, (step, _) in enumerate(steps)
        if label_of(step) in (PLAIN, TWIN) and int(step["batch"]) == batch
    ]  # fmt: skip
    return tuple([each[at] for at in chosen] for each in (steps, *more))


def compare(
    case: dict[str, Any], alone: tuple[list[Step], Any], under: tuple[list[Step], Any], kernels: Sequence[Traced],
    expected: dict[str, Owned], stamp_cost: float,
) -> Rows:  # fmt: skip
    """Rows of one batch: a row per operator, and one for the case; in decode graphs, and of prefills where there were some."""
    batch = case["batch"]
    steps, seen_kernels = full_batch(under[0], batch, kernels)
    (steps_alone,) = full_batch(alone[0], batch)
    labels = [label_of(step) for step, _ in steps]
    pairs = beside(labels)
    if not pairs:
        raise Mismatch(
            f"no instrumented step between two others among {len(steps)}; the plugin has no graph of this size?"
        )
    seen = {at: seen_of(seen_kernels[at], expected[PLAIN]) for _, at, _ in pairs}
    twins = list(dict.fromkeys(at for at, _, _ in pairs))
    weights = {at: sum(weight for _, own, weight in pairs if own == at) for at in seen}
    order = sorted(seen)
    cupti = weighted_mean([seen[at].operators for at in order], [weights[at] for at in order])
    labels_alone = [label_of(step) for step, _ in steps_alone]
    pairs_alone = beside(labels_alone)
    twins_alone = list(dict.fromkeys(at for at, _, _ in pairs_alone))
    if not pairs_alone:
        raise Mismatch(f"without CUPTI: no instrumented step between two others among {len(steps_alone)}")
    mine, mine_alone = ours([steps[at] for at in twins]), ours([steps_alone[at] for at in twins_alone])
    compared = [name for name in cupti if name not in (GAP, SAMPLING, TAIL) and name in mine and name in mine_alone]
    rows = operator_rows({**case, "mode": "decode graph"}, compared, mine, mine_alone, cupti)
    total, total_cupti = (sum(times[name].seconds for name in compared) for times in (mine, cupti))
    waits = [seen_of(seen_kernels[at].without_stamps(), expected[PLAIN]) for at in twins]
    parts = parts_of(
        [steps[at] for at in twins], mine, [seen[at] for at in order], [weights[at] for at in order], waits
    )
    rows.append({
        **case, "mode": "decode graph", "problem": "", "kernels": len(expected[PLAIN]), "steps_compared": len(twins),
        "not_compared": sorted({*mine, *cupti} - {*compared}), "tokens_identical": alone[1] == under[1],
        "operators_ours_ms": as_ms(total), "operators_cupti_ms": as_ms(total_cupti),
        "operators_error_percent": as_percent(total - total_cupti, total_cupti), **parts,
        **bookkeeping([steps[at] for at in twins]),
        **{f"{name}_without_cupti": value for name, value in bookkeeping([steps_alone[at] for at in twins_alone]).items()},
        "boundary_cost_us": as_us(stamp_cost), "distortion_percent": distortion(steps_alone, pairs_alone),
        "distortion_percent_under_cupti": distortion(steps, pairs),
        "step_by_operator_us": {name: as_us(own.seconds) for name, own in mine_alone.items()},
    })  # fmt: skip
    if batch == 1 and PREFILL in expected:
        rows += prefill_rows(case, alone[0], under[0], kernels, expected[PREFILL])
    return rows


def operator_rows(
    case: dict[str, Any], compared: Sequence[str], mine: dict[str, Ours], mine_alone: dict[str, Ours], cupti: Times
) -> Rows:
    """One row per operator."""
    rows = []
    alone = shares(compared, mine_alone, cupti)
    for operator, own in shares(compared, mine, cupti).items():
        rows.append({
            **case, "operator": operator, **own,
            **{f"{name}_without_cupti": alone[operator][name]
               for name in ("ours_us", "error_us", "error_percent", "share_error_points")},
        })  # fmt: skip
    return rows


def parts_of(
    steps: Sequence[Step], mine: dict[str, Ours], seen: Sequence[Seen], weights: Sequence[float], waits: Sequence[Seen]
) -> dict[str, Any]:
    """Percent of a step that is in no operator, by the plugin and by CUPTI; and the GPU's busy share of a step.

    ``seen``: what CUPTI saw of LightLLM's own steps; ``waits``: of the very ``steps``. When the host keeps the GPU waiting is
    chance, so ``gap`` is compared in the same steps.
    """
    whole = float(np.mean([float(step["seconds"]) for step, _ in steps]))
    whole_cupti = float(np.average([each.seconds for each in seen], weights=weights))

    def cupti(part: str) -> float:
        return 100 * float(np.average([each.parts[part] for each in seen], weights=weights)) / whole_cupti

    found: dict[str, Any] = {
        "step_ours_ms": as_ms(whole), "step_cupti_ms": as_ms(whole_cupti),
        "step_error_percent": as_percent(whole - whole_cupti, whole_cupti),
        "busy_cupti_percent": round(100 * float(np.average([each.busy for each in seen], weights=weights)) / whole_cupti, 4),
        "ambiguous_cupti_percent": round(cupti(AMBIGUOUS), 4),
    }  # fmt: skip
    for part in PARTS:
        own = 100 * mine[part].seconds / whole if part in mine else 0.0
        other = 100 * float(np.mean([each.parts[part] for each in waits])) / whole if part == GAP else cupti(part)
        found |= {
            f"{part}_ours_percent": round(own, 4), f"{part}_cupti_percent": round(other, 4),
            f"{part}_error_points": round(own - other, 4),
        }  # fmt: skip
    # The plugin takes an interval for one or the other as a whole.
    both = sum(found[f"{part}_error_points"] for part in (GAP, OTHER))
    found["gap_and_other_error_points"] = round(both, 4)
    return found


def distortion(steps: Sequence[Step], pairs: Sequence[tuple[int, int, float]]) -> float:
    """Percent that an instrumented step takes longer than those around it."""
    seconds = [float(step["seconds"]) for step, _ in steps]
    instrumented = {at: seconds[at] for at, _, _ in pairs}
    own = {at: sum(weight * seconds[other] for one, other, weight in pairs if one == at) for at in instrumented}
    return round(100 * (float(np.median([instrumented[at] / own[at] for at in instrumented])) - 1), 4)


def prefill_rows(
    case: dict[str, Any], alone: Sequence[Step], under: Sequence[Step], kernels: Sequence[Traced], expected: Owned
) -> Rows:
    """Prefills of one prompt, without graphs: the same kernels under CUPTI as with markers."""
    chosen = [at for at, (step, _) in enumerate(under) if label_of(step) == PREFILL]
    mode = {**case, "mode": "prefill eager"}
    names = [name for name, _ in expected]
    found = [at for at in chosen if [kernel.name for kernel in launched(kernels[at].kernels[1:])] == names]
    mine_alone_steps = [each for each in alone if label_of(each[0]) == PREFILL]
    if not found or not mine_alone_steps:
        return [{**mode, "problem": f"none of {len(chosen)} prefills has the kernels of the one with markers"}]
    # The first prompt of the batch itself is shorter: it has other kernels, or is left out by its tokens.
    most = max(int(under[at][0]["tokens"]) for at in found)
    found = [at for at in found if int(under[at][0]["tokens"]) == most]
    mine_alone_steps = [each for each in mine_alone_steps if int(each[0]["tokens"]) == most]
    seen = [seen_of(kernels[at], expected) for at in found]
    cupti = weighted_mean([each.operators for each in seen], [1.0] * len(seen))
    mine, mine_alone = ours([under[at] for at in found]), ours(mine_alone_steps)
    compared = [name for name in cupti if name not in (GAP, SAMPLING, TAIL) and name in mine and name in mine_alone]
    rows = operator_rows(mode, compared, mine, mine_alone, cupti)
    for row in rows:
        time_ = cupti[row["operator"]]
        row["cupti_idle_percent"] = as_percent(time_.seconds - time_.busy, time_.seconds)
    return [
        *rows,
        {**mode, "problem": "", "kernels": len(expected), "steps_compared": len(found), "tokens": most,
         "not_compared": sorted({*mine, *cupti} - {*compared}),
         **parts_of([under[at] for at in found], mine, seen, [1.0] * len(seen), seen)},
    ]  # fmt: skip
