"""A batch size run once, as accuracy.py runs it: what every step was meant to be, and what the plugin says of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from kernels import Kernel, Mismatch

from lightllm_otel.records import layout
from lightllm_otel.records.vocabulary import Mode, Operator, Phase

DROPPED_STEPS = 2  # of each kind, at the start of a pass
GAP, SAMPLING = Operator.GAP.value, Operator.SAMPLING.value
TWIN, PLAIN, EAGER, PREFILL = "twin", "plain", "eager", "prefill"


@dataclasses.dataclass(frozen=True)
class Ours:
    """Means over steps, of one operator: seconds and calls per step; the share of calls that found the GPU waiting."""

    seconds: float
    calls: float
    starved: float


Step = tuple[Any, np.ndarray]


def ours(steps: Sequence[Step]) -> dict[str, Ours]:
    intervals = np.concatenate([intervals for _, intervals in steps])
    found = {}
    for operator in Operator:
        own = intervals[intervals["operator"] == operator.code]
        if len(own):
            starved = float(((own["flags"] & layout.STARVED) != 0).mean())
            found[operator.value] = Ours(float(own["seconds"].sum()) / len(steps), len(own) / len(steps), starved)
    return found


def label_of(step: Any) -> str:
    """What kind of step the ring says this was."""
    sampled = bool(step["flags"] & layout.SAMPLED)
    if step["phase"] == Phase.PREFILL.code:
        return PREFILL if sampled else "prefill that was not sampled"
    if step["mode"] == Mode.GRAPH.code:
        return TWIN if sampled else PLAIN
    return EAGER if sampled else "eager step that was not sampled"


@dataclasses.dataclass
class Pass:
    """A batch size run once: what each step was meant to be, what the ring says, and under CUPTI its kernels."""

    labels: list[str]
    ring: list[Step]
    tokens: list[list[int]]
    kernels: list[list[Kernel]] | None = None

    def __post_init__(self) -> None:
        seen = [label_of(step) for step, _ in self.ring]
        if seen != self.labels:
            wrong = next((f"{a}, not {b}" for a, b in zip(seen, self.labels) if a != b), "")
            raise Mismatch(f"the ring has {len(seen)} steps of {len(self.labels)}; the first that is wrong: {wrong}")
        if self.kernels is not None and len(self.kernels) != len(self.labels):
            raise Mismatch(f"CUPTI saw {len(self.kernels)} steps of {len(self.labels)}")

    def steps(self, label: str) -> list[Step]:
        return [self.ring[at] for at in self._chosen(label)]

    def kernels_of(self, label: str) -> list[list[Kernel]]:
        assert self.kernels is not None
        return [self.kernels[at] for at in self._chosen(label)]

    def _chosen(self, label: str) -> list[int]:
        chosen = [at for at, each in enumerate(self.labels) if each == label]
        return chosen[DROPPED_STEPS if label in (TWIN, PLAIN) else 0 :]
