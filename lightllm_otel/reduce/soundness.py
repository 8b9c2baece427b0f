"""Which steps of a ring can be added to sums: a ring may be damaged, or of another version."""

from __future__ import annotations

import numpy as np

from lightllm_otel.records.batch import RecordBatch
from lightllm_otel.records.vocabulary import IdleReason, Implementation, Mode, Operator, Phase, Site


def are_sound(batch: RecordBatch) -> np.ndarray:
    """Return which steps can be added to sums (bool, shape (steps,)): all codes are known, all times are numbers."""
    steps, intervals = batch.steps, batch.intervals
    sound = (steps["phase"] < len(Phase)) & (steps["mode"] < len(Mode)) & (steps["idle_reason"] < len(IdleReason))
    sound &= np.isfinite(steps["wall_time"])
    for name in ("seconds", "idle_seconds"):
        sound &= (steps[name] >= 0) & (steps[name] < np.inf)
    known = (intervals["operator"] < len(Operator)) & (intervals["site"] < len(Site))
    known &= intervals["implementation"] < len(Implementation)
    known &= (intervals["seconds"] >= 0) & (intervals["seconds"] < np.inf)
    sound[batch.step_of_interval[~known]] = False
    return np.asarray(sound, bool)
