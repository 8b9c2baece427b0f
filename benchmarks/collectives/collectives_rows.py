"""What the ranks of a run left, as rows: matched and split by the exporter's own code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import witness
from rank import AHEAD, GRAPH, SEEN

from lightllm_otel.records import layout
from lightllm_otel.records.batch import RecordBatch
from lightllm_otel.records.vocabulary import Operator, Site
from lightllm_otel.reduce.collectives import (
    Collectives,
    has_transfer,
    last_arrival,
    last_rank_known,
    noise_seconds,
    transfer_and_wait,
)
from lightllm_otel.reduce.matching import Matched, Matching

Rows = list[dict[str, Any]]


class Run:
    """``left``: what each rank wrote beside its cells; ``steps``: of each rank; ``matched`` by number of the step."""

    def __init__(self, cells: Sequence[np.ndarray], left: Sequence[dict[str, Any]]) -> None:
        self.left = left
        self.steps = [layout.steps_in(each) for each in cells]
        batches = [RecordBatch.of_cells(each) for each in cells]
        self.matched: dict[int, Matched] = {}
        matching = Matching(self._keep)
        for rank, each in enumerate(left):
            matching.set_facts(rank, each["facts"])
        # By passes: the exporter would read as often, and hardly keeps more steps waiting than one has.
        for each in left[0]["passes"]:
            for rank, batch in enumerate(batches):
                numbers = batch.steps["number"]
                matching.add(rank, batch.only((numbers >= each["first"]) & (numbers <= each["last"])))
            matching.settle()
        self.unmatched = {reason.value: count for reason, count in matching.unmatched.items()}

    def _keep(self, matched: Matched) -> None:
        self.matched[int(matched.step["number"])] = matched

    @classmethod
    def read(cls, folder: Path, tp: int) -> Run:
        return cls(
            [np.load(folder / f"rank-{rank}.npy") for rank in range(tp)],
            [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(tp)],
        )

    def clock(self, mode: str) -> tuple[float, float]:
        """``(quantum, cost of a boundary)``, the largest of the ranks."""
        names = ("stamp_quantum", "stamp_cost") if mode == GRAPH else ("clock_quantum", "boundary_cost")
        quantum, cost = (max(float(each[name]) for each in self.left) for name in names)
        return quantum, cost

    def of(self, each: dict[str, Any]) -> list[Matched]:
        """The steps of a pass, as far as they were matched."""
        return [self.matched[number] for number in range(each["first"], each["last"] + 1) if number in self.matched]


def rows_of(run: Run, tp: int) -> Rows:
    rows: Rows = [{"kind": "unmatched", **run.unmatched}] if tp > 1 else []
    for number, each in enumerate(run.left[0]["passes"]):
        if each["kind"] == "share":
            rows += share_rows(run, each)
        elif each["kind"] in ("plain", "slow"):
            rows.append(pass_row(run, each))
        elif each["kind"] == "bandwidth" and tp > 1:
            calls = [row["own"] for row in run.left]
            rows.append({**bandwidth_row(run, each, calls), "pass": number})
    lost = [sum(each["dropped"]) + each["overwrites"] for each in run.left]
    rows.append({"kind": "rank facts", "dropped": lost, "errors": [sum(each["errors"]) for each in run.left],
                 "twins": [each["facts"].get("graphs", {}) for each in run.left],
                 "clocks": [{name: each[name] for name in ("clock_quantum", "boundary_cost", "stamp_quantum", "stamp_cost")}
                            for each in run.left]})  # fmt: skip
    return rows


def share_rows(run: Run, each: dict[str, Any]) -> Rows:
    """Operators' part of the steps of a pass, all ranks together; without the first step, which warms up."""
    seconds, calls, steps = np.zeros(len(Operator)), np.zeros(len(Operator), int), 0
    for of_rank in run.steps:
        for step, intervals in of_rank:
            if each["first"] < step["number"] <= each["last"] and len(intervals):
                seconds += np.bincount(intervals["operator"], intervals["seconds"], len(Operator))
                calls += np.bincount(intervals["operator"], minlength=len(Operator))
                steps += 1
    return [
        {"kind": "share", "mode": each["mode"], "operator": operator.value, "steps": steps,
         "percent": round(100 * float(seconds[operator.code] / seconds.sum()), 3),
         "mean_us": round(1e6 * float(seconds[operator.code] / calls[operator.code]), 3)}
        for operator in sorted(Operator, key=lambda operator: -seconds[operator.code]) if calls[operator.code]
    ]  # fmt: skip


def in_layers(matched: Matched) -> np.ndarray:
    """Which of its calls are the all_reduce of layers: the embedding's waits for the host, and the logits' is another."""
    inside: np.ndarray = (matched.calls["operator"] == Operator.ALL_REDUCE.code) & (matched.calls["layer"] >= 0)
    return inside


def compared(matched: Matched, mode: str) -> np.ndarray:
    """Those of them that a delay is judged by. Launched ahead, the first call of a step is not: the ranks' GPUs are let go
    right before it, each when its own host had come that far, so it says whose host was later.
    """
    inside, calls = in_layers(matched), matched.calls
    if mode == AHEAD:
        inside &= (calls["layer"] > 0) | (calls["site"] != Site.ATTENTION.code)
    return inside


def pass_row(run: Run, each: dict[str, Any]) -> dict[str, Any]:
    """Transfer of a call, what each rank waited on average, and in how many steps and calls which rank was last.

    ``told``: how many calls have a transfer, ``sure``: how many say who was last. The waits are those of the latter (the exporter
    counts what is certain of all), and a step without such a call names nobody. ``transfer_us_by_last``: the mean over the calls
    in which that rank's time was the least, however little; ranks' own times differ, and a delay changes whose it is.
    ``transfer_us_by_site``: of sites with a call in every step at least, on average.
    """
    noise = noise_seconds(*run.clock(each["mode"]))
    transfers, waits, last_steps, last_calls, known, calls = [], [], [], [], 0, 0
    steps = run.of(each)
    by_last: list[list[float]] = [[] for _ in run.steps]
    by_site: dict[Site, list[np.ndarray]] = {Site.ATTENTION: [], Site.FFN: []}
    for matched in steps:
        layers = matched.only(compared(matched, each["mode"]))
        calls += len(layers.calls)
        transfer, wait = transfer_and_wait(layers.seconds, layers.min_seconds)
        moves = has_transfer(layers)
        if len(moved := transfer[moves]):
            transfers.append(float(moved.mean()))
            known += len(moved)
            least = layers.seconds[:, moves].argmin(axis=0)
            for rank, own in enumerate(by_last):
                own.extend(moved[least == rank].tolist())
            for site, parts in by_site.items():
                if len(part := moved[layers.calls["site"][moves] == site.code]):
                    parts.append(part)
        wait = wait[:, last_rank_known(layers)]
        if not wait.shape[1]:
            continue
        waits.append(wait.mean(axis=1))
        last_calls += last_arrival(wait, noise).tolist()
        last_steps.append(int(last_arrival(wait.mean(axis=1, keepdims=True), noise)[0]))
    slow = each["slow"]
    row = {
        "kind": each["kind"], "mode": each["mode"], "slow": slow, "delay_ms": each["delay_ms"],
        "steps": each["steps"], "matched": len(steps), "calls": calls, "told": known, "sure": len(last_calls),
        "transfer_us": _median_us(transfers),
        "transfer_us_by_step": [round(1e6 * value, 3) for value in transfers],
        "transfer_us_by_site": {
            site.value: _median_us([float(part.mean()) for part in parts])
            for site, parts in by_site.items() if sum(map(len, parts)) >= each["steps"]
        },
        "transfer_us_by_last": [round(1e6 * float(np.mean(own)), 3) if own else None for own in by_last],
        "calls_by_last": [len(own) for own in by_last],
        "wait_us": [round(1e6 * float(value), 3) for value in np.mean(waits, axis=0)] if waits else None,
        "named_steps": sum(rank == slow for rank in last_steps), "named_calls": sum(rank == slow for rank in last_calls),
    }  # fmt: skip
    if each["mode"] != SEEN:
        return row
    chosen = [(int(matched.step["number"]) - each["first"], matched, in_layers(matched)) for matched in steps]
    return row | witness.judged(chosen, [left["seen"][str(each["first"])] for left in run.left], each["steps"], noise)


def _median_us(seconds: Sequence[float]) -> float | None:
    return round(1e6 * float(np.median(seconds)), 3) if seconds else None


def bandwidth_row(run: Run, each: dict[str, Any], own: Sequence[Sequence[dict[str, float]]]) -> dict[str, Any]:
    """The exporter's bus bandwidth of the layers' all_reduce, and the same from the benchmark's own times and sizes."""
    matched, ranks = run.of(each), len(own)
    found = Collectives()
    for step in matched:
        found.add(step, *run.clock(each["mode"]))
    layers = [at for at in found.transfer if at[0] in (Site.ATTENTION.code, Site.FFN.code)]
    moved = sum(found.bus_bytes[at] for at in layers)
    exported = moved / sum(found.transfer[at].total for at in layers) if layers else None
    kept = [
        (in_layers(step) & has_transfer(step))[step.calls["operator"] == Operator.ALL_REDUCE.code] for step in matched
    ]
    chosen = np.concatenate(kept) if kept else np.zeros(0, bool)
    problem = "" if all(len(calls) == len(chosen) for calls in own) else "own calls are not those of the plugin"
    if problem or exported is None:
        return {"kind": "bandwidth", "problem": problem or "no step was matched"}
    seconds = np.array([[call["seconds"] for call in calls] for calls in own])[:, chosen].min(axis=0)
    size = np.array([call["bytes"] for call in own[0]])[chosen]
    # nccl-tests, doc/PERFORMANCE.md: algbw = S/t; all_reduce's busbw = algbw * (2*(n-1)/n)
    independent = float(size.sum() / seconds.sum() * (2 * (ranks - 1) / ranks))
    return {
        "kind": "bandwidth", "problem": "", "calls": int(chosen.sum()), "payload_bytes": int(size[0]),
        "exported_bytes_per_second": round(exported), "independent_bytes_per_second": round(independent),
        "error_percent": round(100 * (exported / independent - 1), 4),
    }  # fmt: skip


def percent(part: float, whole: float) -> float | None:
    return round(100 * part / whole, 2) if whole else None
