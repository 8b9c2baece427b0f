"""A recording as a trace for ui.perfetto.dev or chrome://tracing: ranks as processes, operators as slices.

Chrome's trace event format (JSON, ``ph`` X: complete events, microseconds). A step is placed where the host entered it, or
behind the one before where the host ran ahead; operators lie in it one after the other, as the GPU ran them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from lightllm_otel.records import layout
from lightllm_otel.records.vocabulary import COLLECTIVES, IdleReason, Operator, Phase, Site
from lightllm_otel.reduce.collectives import transfer_and_wait
from lightllm_otel.reduce.matching import Matched, match
from lightllm_otel.tools.analysis.runs import Repeat

STEPS, OPERATORS = 0, 1  # threads of a rank
MOST_EVENTS = 1_000_000
_COLLECTIVES = np.array([operator.code for operator in COLLECTIVES])


def trace(repeat: Repeat) -> dict[str, Any]:
    """``otherData.left_out`` counts slices beyond what viewers take."""
    start = float(repeat.steps["wall_time"].min())
    waits = collective_waits(repeat)
    events: list[dict[str, Any]] = []
    left_out = 0
    for rank in sorted(set(repeat.rank.tolist())):
        facts = repeat.facts.get(rank, {})
        events += _named(rank, f"rank {rank} · {facts.get('gpu_name') or 'GPU unknown'}")
        for event in _rank(repeat, rank, start, waits):
            if len(events) < MOST_EVENTS:
                events.append(event)
            else:
                left_out += 1
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"left_out": left_out}}


def _named(rank: int, name: str) -> list[dict[str, Any]]:
    threads = ((STEPS, "steps"), (OPERATORS, "operators"))
    return [
        {"ph": "M", "name": "process_name", "pid": rank, "args": {"name": name}},
        {"ph": "M", "name": "process_sort_index", "pid": rank, "args": {"sort_index": rank}},
        *(
            {"ph": "M", "name": "thread_name", "pid": rank, "tid": thread, "args": {"name": words}}
            for thread, words in threads
        ),
    ]


def _rank(repeat: Repeat, rank: int, start: float, waits: np.ndarray) -> Iterator[dict[str, Any]]:
    bounds = np.searchsorted(repeat.of, np.arange(len(repeat.steps) + 1))
    free = 0.0  # when the step before ended
    for place in np.flatnonzero(repeat.rank == rank).tolist():
        step = repeat.steps[place]
        entered = float(step["wall_time"]) - start
        began = max(entered, free)
        reason = IdleReason.of(int(step["idle_reason"]))
        if free and began > free and reason is not IdleReason.NONE:
            yield _slice(rank, STEPS, f"idle: {reason.value.replace('_', ' ')}", free, began - free)
        phase = Phase.of(int(step["phase"]))
        yield _slice(rank, STEPS, f"{phase} {int(step['number'])}", began, float(step["seconds"]), {
            "batch": int(step["batch"]), "tokens": int(step["tokens"]), "context": int(step["context"]),
        })  # fmt: skip
        yield from _intervals(repeat, rank, slice(*bounds[place : place + 2].tolist()), began, waits)
        free = began + float(step["seconds"])


def _intervals(repeat: Repeat, rank: int, of_step: slice, at: float, waits: np.ndarray) -> Iterator[dict[str, Any]]:
    for interval, wait in zip(repeat.intervals[of_step], waits[of_step].tolist()):
        seconds = max(float(interval["seconds"]), 0.0)
        operator, site = Operator.of(int(interval["operator"])), Site.of(int(interval["site"]))
        about: dict[str, Any] = {"layer": int(interval["layer"])} if interval["layer"] >= 0 else {}
        if interval["flags"] & layout.STARVED:
            about["starved"] = "the GPU waited for the host at its start"
        if interval["payload_bytes"]:
            about |= {"payload_bytes": int(interval["payload_bytes"]), "site": site.value}
        yield _slice(rank, OPERATORS, operator.value, at, seconds, about)
        if wait > 0:
            # The rank that came first waits first; the transfer begins when the last one is there.
            yield _slice(rank, OPERATORS, "wait for the last rank", at, min(wait, seconds))
        at += seconds


def collective_waits(repeat: Repeat) -> np.ndarray:
    """Return the seconds that each interval's rank waited for the others at least, shape (intervals,); 0 for what is no
    collective.

    By the same matching as in the exporter: only steps that every rank has, with the same calls.
    """
    waits = np.zeros(len(repeat.intervals))
    first = dict(zip(repeat.batches, np.cumsum([0, *(len(batch.intervals) for batch in repeat.batches.values())])))
    calls: dict[tuple[int, int], np.ndarray] = {}
    for rank, batch in repeat.batches.items():
        found = np.flatnonzero(np.isin(batch.intervals["operator"], _COLLECTIVES))
        numbers = batch.steps["number"][batch.step_of_interval[found]]
        for number in np.unique(numbers).tolist():
            calls[rank, number] = first[rank] + found[numbers == number]

    def place(matched: Matched) -> None:
        _, wait = transfer_and_wait(matched.seconds, matched.min_seconds)
        for rank, own in zip(matched.ranks, wait):
            places = calls[rank, int(matched.step["number"])]
            if len(places) == len(own):  # else a rank has restarted, and its numbers are there twice
                waits[places] = own

    if len(repeat.batches) > 1:
        match(repeat.batches, place)
    return waits


def _slice(
    rank: int, thread: int, name: str, at: float, seconds: float, about: dict[str, Any] | None = None
) -> dict[str, Any]:
    event = {
        "ph": "X",
        "name": name,
        "pid": rank,
        "tid": thread,
        "ts": round(at * 1e6, 3),
        "dur": round(seconds * 1e6, 3),
    }
    return {**event, "args": about} if about else event
