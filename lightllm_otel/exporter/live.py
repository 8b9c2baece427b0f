"""The live page's JSON: what a group does now and did in the last hour, in the words of the HTML report.

``kind`` is ``live``; ``name``, ``facts``, ``ranks`` and ``phases`` (``step``, ``operators``, ``example``) are what they are in a
report. It is made once a second while somebody watches, and not at all otherwise.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lightllm_otel.exporter.event_stream import EventStream
from lightllm_otel.exporter.prometheus import group_level
from lightllm_otel.records.vocabulary import COLLECTIVES, IdleReason, Mode, Operator, Phase, Scope, Site
from lightllm_otel.reduce.collectives import noise_seconds
from lightllm_otel.reduce.group import Group
from lightllm_otel.reduce.recent import COLUMN_ROWS, KINDS, MOST_RANKS, SLOW_MINUTES, SlowStep, Sums
from lightllm_otel.reduce.recent import EVERY_SECONDS as ROW_SECONDS

VERSION = 1
EVERY_SECONDS = 1.0
NOW_SECONDS = 60.0
MINUTE_SECONDS = COLUMN_ROWS * ROW_SECONDS
HOUR_SECONDS = 3600.0
FACTS = ("model", "gpu_name", "tp", "dtype", "lightllm", "torch", "cuda", "clock", "plugin")


class Live:
    """Keeps the last hour of ``group``, and feeds whoever watches. ``wall``: Unix time."""

    def __init__(self, group: Group, wall: Callable[[], float] = time.time) -> None:
        self.event_stream = EventStream()
        self._group = group
        self._wall = wall
        self._next = 0.0

    def poll(self, now: float) -> None:
        """Keep what is due, and publish it. ``now``: monotonic seconds. Called by the thread that changes the group."""
        recent = self._group.recent
        if recent.due(now):
            self._copy()
            recent.keep(now)
        if self.event_stream.listeners and now >= self._next:
            self._next = now + EVERY_SECONDS
            self._copy()
            self.event_stream.publish(json.dumps(self.data(now), separators=(",", ":"), allow_nan=False).encode())

    def data(self, now: float) -> dict[str, Any]:
        """Return the page's JSON."""
        group, recent = self._group, self._group.recent
        last_minute, now_covered = recent.over(NOW_SECONDS, now)
        last_hour, hour_covered = recent.over(HOUR_SECONDS, now)
        facts = group.facts()
        return {
            "kind": "live",
            "version": VERSION,
            "name": str(facts.get("model") or "LightLLM"),
            "at": round(self._wall(), 3),
            "ranks": len(group.ranks),
            "facts": {fact: facts[fact] for fact in FACTS if facts.get(fact) not in (None, "")},
            "level": group_level(group) or str(facts.get("level", "")),
            "windows": {"now": _rounded(now_covered), "hour": _rounded(hour_covered), "slow": SLOW_MINUTES * 60.0},
            "load": {
                "now": _load(last_minute, now_covered * len(group.ranks)),
                "hour": _load(last_hour, hour_covered * len(group.ranks)),
                "minutes": [list(_load(each, MINUTE_SECONDS * len(group.ranks)).values()) for each in recent.columns()],
            },
            "phases": [
                self._phase(kind, last_minute, last_hour, now_covered, hour_covered)
                for kind in range(len(KINDS))
                if last_hour["steps"][kind]
            ],
            "collectives": self._collectives(last_minute, last_hour),
            "slowest": [self._slowest(phase) for phase in Phase if recent.longest(phase) is not None],
            "coverage": self._coverage(last_hour),
            "freshness": self._freshness(),
            "cost": self._cost(last_minute, now_covered, last_hour, hour_covered),
        }

    def _copy(self) -> None:
        """Copy the sums that other reducers keep."""
        group, total = self._group, self._group.recent.total
        for field, sums in (("compared", group.expectation.compared), ("expected", group.expectation.expected)):
            for (operator, phase), seconds in sums.items():
                total[field][phase, operator] = seconds
        for (site, phase), histogram in group.collectives.wait.items():  # an observation for each rank
            total["compared_calls"][phase, site] = histogram.count / max(len(group.ranks), 1)
            total["known_calls"][phase, site] = group.collectives.known[site, phase]
        for (site, phase), histogram in group.collectives.transfer.items():
            total["transfer_calls"][phase, site] = histogram.count
            total["transfer_seconds"][phase, site] = histogram.total
        for field, by_rank in (
            ("rank_wait_seconds", group.collectives.wait_seconds),
            ("last_arrivals", group.collectives.last_arrivals),
        ):
            for (site, phase, rank), amount in by_rank.items():
                if rank < MOST_RANKS:
                    total[field][phase, site, rank] = amount
        total["hook_seconds"][0] = group.counter("hook_seconds")
        total["exporter_seconds"][0] = time.process_time()

    def _phase(self, kind: int, minute: Sums, hour: Sums, minute_covered: float, hour_covered: float) -> dict[str, Any]:
        phase, mode = KINDS[kind]
        # A minute without a sampled step says nothing of operators; the hour has to do then.
        sums = minute if minute["sampled"][kind] else hour
        return {
            "phase": phase.value,
            "mode": mode.value,
            "of": "now" if sums is minute else "hour",
            "step": _step(kind, minute, minute_covered, len(self._group.ranks)),
            "hour": _step(kind, hour, hour_covered, len(self._group.ranks)),
            "operators": _operators(kind, phase.code, sums, hour),
            "example": self._example(kind),
        }

    def _example(self, kind: int) -> dict[str, Any] | None:
        if kind not in self._group.recent.last:
            return None
        step, intervals = self._group.recent.last[kind]
        return {
            "number": int(step["number"]), "batch": int(step["batch"]), "seconds": float(step["seconds"]),
            "age": _rounded(max(self._wall() - float(step["wall_time"]), 0.0)),
            "slices": [
                {"operator": Operator.of(int(each["operator"])).value, "layer": int(each["layer"]),
                 "seconds": _rounded(float(each["seconds"]))}
                for each in intervals
            ],
        }  # fmt: skip

    def _collectives(self, minute: Sums, hour: Sums) -> dict[str, Any]:
        group = self._group
        operators = {at: Operator.of(operator).value for at, operator in group.collectives.operators.items()}
        ranks = sorted(rank for rank in group.ranks if rank < MOST_RANKS)
        rows = []
        for site in Site:
            for phase in Phase:
                at = phase.code, site.code
                sums = minute if minute["compared_calls"][at] else hour
                calls, moved = float(sums["compared_calls"][at]), float(sums["transfer_calls"][at])
                if calls:
                    rows.append({
                        "phase": phase.value, "site": site.value, "of": "now" if sums is minute else "hour",
                        "operator": operators.get((site.code, phase.code), COLLECTIVES[0].value), "calls": round(calls),
                        "known": int(sums["known_calls"][at]),
                        # Where the last rank's GPU always waited for its host, or may have, moving has no time of its own.
                        "transfer": _rounded(float(sums["transfer_seconds"][at]) / moved) if moved else None,
                        "waits": [_rounded(float(sums["rank_wait_seconds"][at][rank]) / calls) for rank in ranks],
                        "last": [int(sums["last_arrivals"][at][rank]) for rank in ranks],
                    })  # fmt: skip
        noise = {mode.value: _rounded(noise_seconds(*group.clock(mode.code))) for mode in Mode}
        tp = int(group.facts().get("tp", 1))
        spans_hosts = group.matching.scope is Scope.NODE
        return {"tp": tp, "spans_hosts": spans_hosts, "ranks": ranks, "rows": rows, "noise": noise}

    def _slowest(self, phase: Phase) -> dict[str, Any]:
        recent, longest = self._group.recent, self._group.recent.longest(phase)
        return {
            "phase": phase.value,
            "longest": None if longest is None else self._slow(longest),
            "steps": [self._slow(each) for each in recent.slowest(phase)],
        }

    def _slow(self, slow: SlowStep) -> dict[str, Any]:
        step, found = slow.step, {}
        if slow.operators is not None:
            found = {Operator.of(code).value: _rounded(float(slow.operators[code]))
                     for code in np.flatnonzero(slow.operators).tolist()}  # fmt: skip
        return {
            "number": int(step["number"]), "rank": slow.rank, "mode": Mode.of(int(step["mode"])).value,
            "seconds": _rounded(slow.seconds), "age": _rounded(max(self._wall() - float(step["wall_time"]), 0.0)),
            "batch": int(step["batch"]), "tokens": int(step["tokens"]), "context": int(step["context"]),
            "operators": found,
        }  # fmt: skip

    def _coverage(self, hour: Sums) -> dict[str, Any]:
        group, slots = self._group, self._group.slots()
        named = hour["operator_seconds"].sum() - hour["operator_seconds"][:, Operator.GAP.code].sum()
        whole = float(hour["operator_seconds"].sum())
        return {
            "steps": int(hour["steps"].sum()),
            "sampled": int(hour["sampled"].sum()),
            "named_share": _rounded(float(named) / whole) if whole else None,
            "slots": len(slots),
            "missing": [operator for operator, found in slots.items() if not found],
            "instrumented_graphs": group.instrumented_graphs(),
            "graphs": str((group.facts().get("graphs") or {}).get("reason") or ""),
            "whole_only": {str(reason): int(n) for reason, n in group.whole().items() if n},
            "unmatched": {str(reason): int(n) for reason, n in group.matching.unmatched.items() if n},
        }

    def _freshness(self) -> dict[str, Any]:
        group, wall = self._group, self._wall()
        last = group.recent.last_wall_time
        ranks = []
        for number, rank in sorted(group.ranks.items()):
            if rank.header is None:
                continue
            step, seconds = rank.in_flight(wall)
            ranks.append({"rank": number, "step": step, "in_flight": _rounded(seconds)})
        return {
            "last_step": _rounded(max(wall - last, 0.0)) if last else None,
            "unread": _rounded(group.data_age(wall)),
            "ranks": ranks,
        }

    def _cost(self, minute: Sums, covered: float, hour: Sums, hour_covered: float) -> dict[str, Any]:
        group, ratio = self._group, self._group.distortion.ratio
        ranks, hooked = max(len(group.ranks), 1), bool(group.recent.total["hook_seconds"][0])  # a replay has no hooks
        graph = [at for at, (_, mode) in enumerate(KINDS) if mode is Mode.GRAPH]
        replayed, busy = float(hour["sampled_seconds"][graph].sum()), float(hour["seconds"].sum())
        extra = replayed * (1 - 1 / ratio) / busy if ratio and busy else None
        return {
            "hook": _rounded(float(minute["hook_seconds"][0]) / (covered * ranks)) if covered and hooked else None,
            "exporter": _rounded(float(minute["exporter_seconds"][0]) / covered) if covered else None,
            "memory_bytes": resident_bytes(),
            "distortion": None if ratio is None else _rounded(ratio),
            "gpu": None if extra is None else _rounded(extra),
            "listeners": self.event_stream.listeners,
            "dropped": {str(reason): int(n) for reason, n in group.dropped().items() if n},
            "errors": {str(stage): int(n) for stage, n in group.errors().items() if n},
        }


def _load(sums: Sums, whole: float) -> dict[str, float | None]:
    """Seconds of all ranks by what their GPUs did in ``whole`` seconds of all ranks.

    A step brings the idle time before it along, however long that was, so lack of requests is what the others leave.
    """
    by_phase = sums["seconds"].reshape(len(Phase), len(Mode)).sum(axis=1)
    busy = float(by_phase.sum())
    host = min(float(sums["idle"][IdleReason.HOST.code]), max(whole - busy, 0.0))
    parts = {phase.value: float(by_phase[phase.code]) for phase in Phase}
    parts |= {IdleReason.HOST.value: host, IdleReason.NO_REQUESTS.value: max(whole - busy - host, 0.0)}
    return {name: _rounded(seconds) for name, seconds in parts.items()}


def _step(kind: int, sums: Sums, covered: float, ranks: int) -> dict[str, Any]:
    steps, seconds = float(sums["steps"][kind]), float(sums["seconds"][kind])
    return {
        "steps": int(steps),
        "sampled": int(sums["sampled"][kind]),
        "mean": _rounded(seconds / steps) if steps else None,
        "batch": _rounded(float(sums["batch"][kind]) / steps) if steps else None,
        "context": _rounded(float(sums["context"][kind]) / float(sums["batch"][kind])) if sums["batch"][kind] else None,
        "tokens_per_second": _rounded(float(sums["tokens"][kind]) / covered / max(ranks, 1)) if covered else None,
    }


def _operators(kind: int, phase: int, sums: Sums, hour: Sums) -> list[dict[str, Any]]:
    """The dearest first."""
    own, sampled = sums["operator_seconds"][kind], float(sums["sampled"][kind])
    in_hour = hour["operator_seconds"][kind]
    rows = []
    for operator in Operator:
        seconds, calls = float(own[operator.code]), float(sums["operator_calls"][kind, operator.code])
        if not in_hour[operator.code]:
            continue
        expected, compared = (float(hour[name][phase, operator.code]) for name in ("expected", "compared"))
        rows.append({
            "operator": operator.value,
            "share": _rounded(seconds / (float(own.sum()) or 1.0)),
            "share_hour": _rounded(float(in_hour[operator.code]) / float(in_hour.sum())),
            "seconds_per_step": _rounded(seconds / sampled),
            "seconds_per_call": _rounded(seconds / calls) if calls else None,
            "calls_per_step": _rounded(calls / sampled),
            "slowdown": _rounded(compared / expected) if expected else None,
        })  # fmt: skip
    return sorted(rows, key=lambda row: -float(row["seconds_per_step"] or 0.0))


def _rounded(value: float) -> float | None:
    """Four digits; None, which is shown as a dash, for what is no number."""
    if not math.isfinite(value):
        return None
    return float(f"{value:.4g}") if abs(value) < 1e4 else round(value, 1)


def resident_bytes() -> int | None:
    """Memory of this process; None where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(found[0]) * 1024 if found else None
