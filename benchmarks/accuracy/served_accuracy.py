"""Operator times of an instrumented server beside NVIDIA's CUPTI, which watches the same model process serve.

One decode step in two replays the plugin's instrumented graph, by live control; the others replay LightLLM's own graph.
First without CUPTI, then with it. Which kernel of LightLLM's graph is which operator is found without the plugin: steps
without graphs, with a marker at the entry and end of each operator's method (markers.py), have the same kernels.

An operator lasts from the end of the previous operator's last kernel to the end of its own. Steps get longer with their
context, so each instrumented step is compared with the two of LightLLM's own around it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fixed_batch
import numpy as np
from comparison import as_ms, as_percent, as_us, bookkeeping, shares
from kernels import Mismatch, Times, kernels_in, launched, launches_in, read_trace, weighted_mean
from model_servers import Arm, ModelServer
from passes import GAP, PLAIN, PREFILL, SAMPLING, TWIN, Ours, Step, label_of, ours
from recorded import match, recorded
from streams import Request, together
from traced_steps import (
    AMBIGUOUS,
    OTHER,
    RESIDUAL,
    TAIL,
    Owned,
    Seen,
    Traced,
    entries_of,
    late_of,
    owned_steps,
    seen_of,
    steps_behind_markers,
)

Rows = list[dict[str, Any]]
PARTS = (GAP, OTHER, RESIDUAL, SAMPLING)  # of a step, beside its operators
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
    expected: dict[str, Owned], timestamp_cost: float,
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
    instrumented_graphs = list(dict.fromkeys(at for at, _, _ in pairs))
    weights = {at: sum(weight for _, own, weight in pairs if own == at) for at in seen}
    order = sorted(seen)
    cupti = weighted_mean([seen[at].operators for at in order], [weights[at] for at in order])
    labels_alone = [label_of(step) for step, _ in steps_alone]
    pairs_alone = beside(labels_alone)
    graphs_alone = list(dict.fromkeys(at for at, _, _ in pairs_alone))
    if not pairs_alone:
        raise Mismatch(f"without CUPTI: no instrumented step between two others among {len(steps_alone)}")
    mine, mine_alone = ours([steps[at] for at in instrumented_graphs]), ours([steps_alone[at] for at in graphs_alone])
    compared = [name for name in cupti if name not in (GAP, SAMPLING, TAIL) and name in mine and name in mine_alone]
    rows = operator_rows({**case, "mode": "decode graph"}, compared, mine, mine_alone, cupti)
    total, total_cupti = (sum(times[name].seconds for name in compared) for times in (mine, cupti))
    waits = [seen_of(seen_kernels[at].without_timestamps(), expected[PLAIN]) for at in instrumented_graphs]
    parts = parts_of(
        [steps[at] for at in instrumented_graphs],
        mine,
        [seen[at] for at in order],
        [weights[at] for at in order],
        waits,
    )
    rows.append({
        **case, "mode": "decode graph", "problem": "", "kernels": len(expected[PLAIN]),
        "steps_compared": len(instrumented_graphs),
        "not_compared": sorted({*mine, *cupti} - {*compared}), "tokens_identical": alone[1] == under[1],
        "operators_ours_ms": as_ms(total), "operators_cupti_ms": as_ms(total_cupti),
        "operators_error_percent": as_percent(total - total_cupti, total_cupti), **parts,
        **bookkeeping([steps[at] for at in instrumented_graphs]),
        **{f"{name}_without_cupti": value for name, value in bookkeeping([steps_alone[at] for at in graphs_alone]).items()},
        "boundary_cost_us": as_us(timestamp_cost), "distortion_percent": distortion(steps_alone, pairs_alone),
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
