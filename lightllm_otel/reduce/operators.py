"""Seconds, calls and payloads of operators in sampled steps."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import numpy as np

from lightllm_otel.records.batch import RecordBatch
from lightllm_otel.records.vocabulary import Mode, Operator, Phase
from lightllm_otel.reduce.distinct import distinct
from lightllm_otel.reduce.histogram import OPERATOR_BOUNDS, Histogram

_WIDTH = len(Operator)


def _zeros() -> np.ndarray:
    return np.zeros(_WIDTH)


@dataclasses.dataclass
class OperatorSums:
    """Sums over sampled steps of one phase, mode and rank, by operator code; each of shape (operators,).

    ``seconds``: on the GPU. ``starved``: the seconds of calls at whose start the GPU waited for the host. ``payload``: bytes of
    collectives. ``layers``: in how many layers the operator occurs; 0 outside layers. ``steps``: how many steps.
    """

    seconds: np.ndarray = dataclasses.field(default_factory=_zeros)
    calls: np.ndarray = dataclasses.field(default_factory=_zeros)
    starved: np.ndarray = dataclasses.field(default_factory=_zeros)
    payload: np.ndarray = dataclasses.field(default_factory=_zeros)
    layers: np.ndarray = dataclasses.field(default_factory=_zeros)
    steps: int = 0

    def add(self, batch: RecordBatch) -> None:
        """Add timed steps."""
        codes = batch.intervals["operator"]
        self.steps += len(batch)
        self.seconds += np.bincount(codes, batch.seconds, _WIDTH)
        self.calls += np.bincount(codes, minlength=_WIDTH)
        self.starved += np.bincount(codes[batch.is_starved], batch.seconds[batch.is_starved], _WIDTH)
        self.payload += np.bincount(codes, batch.intervals["payload_bytes"].astype(float), _WIDTH)
        inside = batch.intervals["layer"] >= 0
        layers = batch.intervals["layer"][inside].astype(np.int64)
        pairs = np.unique(codes[inside].astype(np.int64) << 16 | layers)
        self.layers = np.maximum(self.layers, np.bincount(pairs >> 16, minlength=_WIDTH))

    def __add__(self, other: OperatorSums) -> OperatorSums:
        return OperatorSums(
            self.seconds + other.seconds, self.calls + other.calls, self.starved + other.starved,
            self.payload + other.payload, np.maximum(self.layers, other.layers), self.steps + other.steps,
        )  # fmt: skip


class Operators:
    """``sums``: by phase, mode and rank. ``histograms``: seconds of single calls, by operator, phase and mode. Keys are codes."""

    def __init__(self) -> None:
        self.sums: dict[tuple[int, int, int], OperatorSums] = defaultdict(OperatorSums)
        self.histograms: dict[tuple[int, int, int], Histogram] = {}

    def add(self, rank: int, batch: RecordBatch) -> None:
        """Add the steps of one rank that have the times of their operators."""
        timed = batch.timed
        for phase, mode in distinct(timed.steps["phase"], timed.steps["mode"]):
            own = timed.only((timed.steps["phase"] == phase) & (timed.steps["mode"] == mode))
            self.sums[phase, mode, rank].add(own)
            for (operator,) in distinct(own.intervals["operator"]):
                if (operator, phase, mode) not in self.histograms:
                    self.histograms[operator, phase, mode] = Histogram(OPERATOR_BOUNDS)
                self.histograms[operator, phase, mode].observe(own.seconds[own.intervals["operator"] == operator])

    def of(self, phase: Phase, mode: Mode) -> OperatorSums:
        """Return the sums over all ranks."""
        own = [sums for (code, kind, _), sums in self.sums.items() if (code, kind) == (phase.code, mode.code)]
        return sum(own, OperatorSums())

    @property
    def seconds(self) -> dict[tuple[int, int, int], float]:
        """Return seconds by operator, phase and rank."""
        found: dict[tuple[int, int, int], float] = defaultdict(float)
        for (phase, _, rank), sums in self.sums.items():
            for operator in np.flatnonzero(sums.calls).tolist():
                found[operator, phase, rank] += float(sums.seconds[operator])
        return found

    @property
    def starved_seconds(self) -> dict[tuple[int, int], float]:
        """Return the seconds of calls at whose start the GPU waited for the host, by operator and phase."""
        found: dict[tuple[int, int], float] = defaultdict(float)
        for (phase, _, _), sums in self.sums.items():
            for operator in np.flatnonzero(sums.starved).tolist():
                found[operator, phase] += float(sums.starved[operator])
        return found
