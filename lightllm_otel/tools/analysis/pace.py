"""Whole steps: how long they take, how many tokens a second, and how much of the time the GPU had none."""

from __future__ import annotations

import dataclasses

import numpy as np

from lightllm_otel.records.vocabulary import IdleReason, Mode, Phase
from lightllm_otel.tools.analysis import resampling
from lightllm_otel.tools.analysis.runs import Run


@dataclasses.dataclass(frozen=True)
class Pace:
    """Pace of all steps of a kind, sampled or not. Seconds; ``tokens``: new ones of a step; ``context``: of a
    request; ``tokens_per_second``: while steps of this kind run.
    """

    steps: int
    sampled: int
    mean: float
    interval: tuple[float, float]
    p50: float
    p99: float
    batch: float
    tokens: float
    context: float
    tokens_per_second: float


def pace(run: Run, phase: Phase, mode: Mode) -> Pace:
    """Return the pace of a phase and mode. ``steps`` counts each rank's. The interval is that of the mean, 95 %."""
    chosen = [repeat.steps[repeat.chosen(phase, mode)] for repeat in run.repeats]
    steps = np.concatenate(chosen)
    sampled = sum(int(repeat.chosen(phase, mode, sampled=True).sum()) for repeat in run.repeats)
    seconds = steps["seconds"]
    p50, p99 = np.quantile(seconds, [0.5, 0.99])
    # Seconds per step as a share: of a column of seconds and one of ones, share / (1 - share) is their ratio.
    pairs = [np.stack([part["seconds"], np.ones(len(part))], axis=1) for part in chosen if len(part)]
    low, high = (bound[0] / (1 - bound[0]) for bound in resampling.shares(pairs))
    return Pace(
        len(steps), sampled, float(seconds.mean()), (float(low), float(high)), float(p50), float(p99),
        float(steps["batch"].mean()), float(steps["tokens"].mean()),
        float(steps["context"].sum() / max(int(steps["batch"].sum()), 1)),
        # Every rank computes the same tokens, in its own seconds.
        float(steps["tokens"].sum() / seconds.sum()),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Idle:
    """Shares of the time from the first step to the end of the last, mean over ranks and repeats."""

    seconds: float
    busy: float
    host: float
    no_requests: float
    output_tokens_per_second: float


def idle(run: Run) -> Idle:
    wall = busy = host = nothing = tokens = spans = 0.0
    for repeat in run.repeats:
        for rank in np.unique(repeat.rank):
            steps = repeat.steps[repeat.rank == rank]
            wall += float((steps["wall_time"] + steps["seconds"]).max() - steps["wall_time"].min())
            busy += float(steps["seconds"].sum())
            waits = steps["idle_seconds"][1:].astype(float)  # what was before the first step is not the run's
            host += float(waits[steps["idle_reason"][1:] == IdleReason.HOST.code].sum())
            nothing += float(waits[steps["idle_reason"][1:] == IdleReason.NO_REQUESTS.code].sum())
            # A prefill makes the first token of each of its requests, and so does a mixed step. (One that computes a
            # part of a prompt only makes none; a recording does not tell it apart.)
            decode = steps["phase"] == Phase.DECODE.code
            tokens += float(steps["tokens"][decode].sum() + steps["requests"][~decode].sum())
            spans += 1
    return Idle(wall / spans, busy / wall, host / wall, nothing / wall, tokens / wall)
