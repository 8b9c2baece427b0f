"""Cost of instrumented graphs, live: each sampled graph step against its plain neighbours."""

from __future__ import annotations

from lightllm_otel.records.batch import RecordBatch
from lightllm_otel.records.vocabulary import Mode, Phase


class Distortion:
    """Adds up sampled graph decode steps, and the mean of the plain steps before and after each, of the same batch.

    Neighbours have the same context but for one token, so neither load nor context gets into the ratio.
    """

    def __init__(self) -> None:
        self._instrumented = 0.0
        self._plain = 0.0

    def add(self, rank: int, batch: RecordBatch) -> None:
        """Add consecutive steps of one rank."""
        steps, is_sampled = batch.steps, batch.is_sampled
        if len(steps) < 3:
            return
        before, middle, after = steps[:-2], steps[1:-1], steps[2:]
        fits = is_sampled[1:-1] & ~is_sampled[:-2] & ~is_sampled[2:]
        for each in (before, middle, after):
            fits &= (each["phase"] == Phase.DECODE.code) & (each["mode"] == Mode.GRAPH.code)
        for each in (before, after):
            fits &= each["batch"] == middle["batch"]
        self._instrumented += float(middle["seconds"][fits].sum())
        self._plain += float((before["seconds"][fits] + after["seconds"][fits]).sum()) / 2

    @property
    def ratio(self) -> float | None:
        """Return seconds in instrumented graphs divided by seconds in plain ones; None before there is anything to compare."""
        return self._instrumented / self._plain if self._plain else None
