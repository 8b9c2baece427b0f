"""Calls of an operator in their order, at one load, for judging whether repeats agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightllm_otel.records.vocabulary import Mode, Operator, Phase
from lightllm_otel.tools.analysis.runs import Repeat


def usual_batch(repeats: Sequence[Repeat], phase: Phase, mode: Mode) -> int:
    """Return the batch that most sampled steps of this kind computed, over all repeats; 0 where there is none."""
    batches = np.concatenate([each.steps["padded"][each.chosen(phase, mode, sampled=True)] for each in repeats])
    if not len(batches):
        return 0
    found, count = np.unique(batches, return_counts=True)
    return int(found[count.argmax()])


def calls_of(repeat: Repeat, phase: Phase, mode: Mode, batch: int) -> dict[str, np.ndarray]:
    """Return operator → seconds of its calls on the lowest rank, in sampled steps of this kind and batch. The gap is not a
    call."""
    chosen = repeat.chosen(phase, mode, sampled=True) & (repeat.steps["padded"] == batch)
    chosen &= repeat.rank == repeat.rank.min()
    rows = repeat.intervals[chosen[repeat.of]]
    return {
        operator.value: rows["seconds"][rows["operator"] == operator.code].astype(float)
        for operator in Operator
        if operator is not Operator.GAP and (rows["operator"] == operator.code).any()
    }
