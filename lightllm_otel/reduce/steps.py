"""Whole steps: how long they took, what they computed, and the time between them."""

from __future__ import annotations

from collections import defaultdict

from lightllm_otel.records.batch import RecordBatch
from lightllm_otel.reduce.distinct import distinct
from lightllm_otel.reduce.histogram import STEP_BOUNDS, Histogram


class Steps:
    """Steps of every rank. ``histograms``: seconds, by phase and mode. ``idle_seconds``: between steps, by reason and rank."""

    def __init__(self) -> None:
        self.histograms: dict[tuple[int, int], Histogram] = defaultdict(lambda: Histogram(STEP_BOUNDS))
        self.idle_seconds: dict[tuple[int, int], float] = defaultdict(float)

    def add(self, rank: int, batch: RecordBatch) -> None:
        """Add the steps of one rank, sampled or not."""
        steps = batch.steps
        for phase, mode in distinct(steps["phase"], steps["mode"]):
            chosen = steps[(steps["phase"] == phase) & (steps["mode"] == mode)]
            self.histograms[phase, mode].observe(chosen["seconds"])
        for (reason,) in distinct(steps["idle_reason"]):
            idle = steps["idle_seconds"][steps["idle_reason"] == reason].astype(float)
            self.idle_seconds[reason, rank] += float(idle.sum())


class Computed:
    """Tokens and requests of steps, by phase. The ranks of a group compute the same, so one of them is added."""

    def __init__(self) -> None:
        self.tokens: dict[int, int] = defaultdict(int)
        self.requests: dict[int, int] = defaultdict(int)

    def add(self, rank: int, batch: RecordBatch) -> None:
        """Add the steps of the rank that counts for its group."""
        steps = batch.steps
        for (phase,) in distinct(steps["phase"]):
            chosen = steps[steps["phase"] == phase]
            self.tokens[phase] += int(chosen["tokens"].sum())
            self.requests[phase] += int(chosen["requests"].sum())
