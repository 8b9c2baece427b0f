"""Which steps of a ring can be added to sums: a ring may be damaged, or of another version."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightllm_otel.records.vocabulary import IdleReason, Implementation, Mode, Operator, Phase, Site


def are_sound(steps: np.ndarray, intervals: Sequence[np.ndarray]) -> np.ndarray:
    """Return which of ``steps`` (``STEP``, shape (n,)) can be added to sums: all codes of the vocabulary, all times numbers."""
    codes = (steps["phase"] < len(Phase)) & (steps["mode"] < len(Mode)) & (steps["idle_reason"] < len(IdleReason))
    times = np.isfinite(steps["wall_time"])
    for name in ("seconds", "idle_seconds"):
        times &= (steps[name] >= 0) & (steps[name] < np.inf)
    sound: np.ndarray = codes & times
    for at in np.flatnonzero(steps["intervals"]).tolist():
        each = intervals[at]
        sound[at] &= (
            each["operator"].max() < len(Operator) and each["site"].max() < len(Site)
            and each["implementation"].max() < len(Implementation)
            and each["seconds"].min() >= 0 and each["seconds"].max() < np.inf
        )  # fmt: skip
    return sound
