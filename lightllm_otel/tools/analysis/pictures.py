"""Data of the pictures of a report: layers, collectives, steps over time, and one step in full."""

from __future__ import annotations

from typing import Any

import numpy as np

from lightllm_otel.records.vocabulary import COLLECTIVES, Mode, Operator, Phase, Site
from lightllm_otel.tools.analysis.runs import Run

BINS, MOST_BINS = 24, 160  # between the first and the last percentile, and over all
MOST_POINTS = 600


def layers(run: Run, phase: Phase, mode: Mode) -> dict[str, Any] | None:
    """Return the mean seconds of each operator in each layer of a step, over steps and ranks; None without layers."""
    width, deep = len(Operator), 1 + max(int(repeat.intervals["layer"].max(initial=-1)) for repeat in run.repeats)
    if not deep:
        return None
    sums, steps = np.zeros(deep * width), 0
    for repeat in run.repeats:
        chosen = repeat.chosen(phase, mode, sampled=True)
        intervals = repeat.intervals[chosen[repeat.of]]
        inside = intervals[intervals["layer"] >= 0]
        cells = inside["layer"].astype(np.int64) * width + inside["operator"]
        sums += np.bincount(cells, inside["seconds"].astype(float), deep * width)
        steps += int(chosen.sum())
    if not steps:
        return None
    table = sums.reshape(deep, width).T / steps
    operators = [operator for operator in Operator if table[operator.code].any()]
    operators.sort(key=lambda operator: -float(table[operator.code].sum()))
    return {
        "layers": deep,
        "operators": [operator.value for operator in operators],
        "seconds": [_rounded(table[operator.code]) for operator in operators],
    }


def collectives(run: Run, phase: Phase, mode: Mode) -> list[dict[str, Any]]:
    """Return the distribution of the seconds of single calls, per operator and site: counts over bins of equal ratio,
    quantiles."""
    found = []
    for operator in COLLECTIVES:
        parts = []
        for repeat in run.repeats:
            chosen = repeat.chosen(phase, mode, sampled=True)[repeat.of] & (
                repeat.intervals["operator"] == operator.code
            )
            parts.append(repeat.intervals[chosen])
        calls = np.concatenate(parts)
        for site in Site:
            own = calls[calls["site"] == site.code]
            if len(own):
                found.append({"operator": operator.value, "site": site.value, **_distribution(own)})
    return found


def _distribution(calls: np.ndarray) -> dict[str, Any]:
    seconds = np.maximum(calls["seconds"].astype(float), 1e-8)
    quantiles = np.quantile(seconds, [0.01, 0.5, 0.99])
    octaves = np.log2(seconds)
    per_octave = min(
        BINS / max(float(np.log2(quantiles[2] / quantiles[0])), 0.1), MOST_BINS / max(float(np.ptp(octaves)), 0.1)
    )
    bins = np.floor(per_octave * octaves).astype(int)
    first = int(bins.min())
    counts = np.bincount(bins - first)
    return {
        "calls": len(calls),
        "payload_bytes": float(np.median(calls["payload_bytes"])),
        "edges": _rounded(2.0 ** (np.arange(first, first + len(counts) + 1) / per_octave)),
        "counts": counts.tolist(),
        "p1": float(quantiles[0]), "p50": float(quantiles[1]), "p99": float(quantiles[2]), "max": float(seconds.max()),
    }  # fmt: skip


def timeline(run: Run) -> dict[str, Any]:
    """Return steps of the lowest rank of the first repeat over time: the longest of each bin, at most a few hundred points."""
    repeat = run.repeats[0]
    steps = repeat.steps[(repeat.rank == repeat.rank.min()) & (repeat.steps["tokens"] > 0)]
    steps = steps[np.argsort(steps["wall_time"], kind="stable")]
    start = float(steps["wall_time"][0])
    points = []
    for phase in Phase:
        own = steps[steps["phase"] == phase.code]
        size = -(-len(own) // MOST_POINTS) or 1
        for at in range(0, len(own), size):
            part = own[at : at + size]
            longest = part[int(np.argmax(part["seconds"]))]
            points.append({
                "phase": phase.value, "at": round(float(longest["wall_time"]) - start, 6),
                "seconds": _round(float(longest["seconds"])), "median": _round(float(np.median(part["seconds"]))),
                "batch": int(longest["batch"]),
            })  # fmt: skip
    return {"steps": len(steps), "points": points}


def example(run: Run, phase: Phase, mode: Mode) -> dict[str, Any] | None:
    """Return the sampled step nearest to the median, operator by operator in the order of the GPU."""
    repeat = run.repeats[0]
    places = np.flatnonzero(repeat.chosen(phase, mode, sampled=True) & (repeat.rank == repeat.rank.min()))
    if not len(places):
        return None
    seconds = repeat.steps["seconds"][places]
    place = int(places[int(np.argmin(np.abs(seconds - np.median(seconds))))])
    intervals = repeat.intervals[slice(*np.searchsorted(repeat.of, [place, place + 1]))]
    return {
        "number": int(repeat.steps["number"][place]), "batch": int(repeat.steps["batch"][place]),
        "seconds": float(repeat.steps["seconds"][place]),
        "slices": [
            {"operator": Operator.of(int(each["operator"])).value, "layer": int(each["layer"]),
             "seconds": _round(float(each["seconds"]))}
            for each in intervals
        ],
    }  # fmt: skip


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def _rounded(values: np.ndarray) -> list[float]:
    return [_round(float(value)) for value in values]
