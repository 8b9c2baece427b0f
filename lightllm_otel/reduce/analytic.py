"""What the steps of a server had to compute and to move, by the analytic model: all steps, sampled or not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from lightllm_otel.records.vocabulary import Phase
from lightllm_otel.roofline import shape, work
from lightllm_otel.roofline.gpus import Gpu, UnknownGpu, find
from lightllm_otel.roofline.shape import ModelShape, UnknownModel


class Analytic:
    """``flops`` and ``memory_bytes``: (operator, phase) codes → sum over steps and ranks.

    Steps of one poll with the same phase, batch and tokens are taken together, at their mean context: everything is
    linear in it. The requests of a prefill are taken as equally long; only their sum is known.
    """

    def __init__(self) -> None:
        self.flops: dict[tuple[int, int], float] = defaultdict(float)
        self.memory_bytes: dict[tuple[int, int], float] = defaultdict(float)
        self.gpu: Gpu | None = None
        self._shape: ModelShape | None = None
        self._ranks = 1
        self._element = 2.0

    def set_facts(self, facts: Mapping[str, Any]) -> None:
        """Of any rank. A model or a GPU that is not known leaves its part out."""
        self._ranks = int(facts.get("tp", 1))
        self._element = shape.DTYPE_BYTES.get(str(facts.get("dtype", "")), 2)
        try:
            self._shape = shape.from_config(facts.get("config") or {}, str(facts.get("model", "")))
        except (UnknownModel, ValueError, TypeError):
            self._shape = None
        try:
            self.gpu = find(str(facts.get("gpu_name", "")))
        except UnknownGpu:
            self.gpu = None

    def add(self, steps: np.ndarray) -> None:
        """Steps of one rank of the group (``STEP``, shape (n,)): what each of its ranks does."""
        if self._shape is None:
            return
        kinds = np.stack([steps[name].astype(np.int64) for name in ("phase", "batch", "tokens")], axis=1)
        found, group = np.unique(kinds, axis=0, return_inverse=True)
        for number, (phase, batch, tokens) in enumerate(found.tolist()):
            chosen = steps[group.reshape(-1) == number]
            if batch and tokens:
                self._add(phase, batch, tokens, float(chosen["context"].mean()), len(chosen))

    def _add(self, phase: int, batch: int, tokens: int, context: float, times: int) -> None:
        assert self._shape is not None
        kind = Phase(Phase.of(phase))
        new = max(tokens // batch, 1) if kind is Phase.PREFILL else 1
        each = work.Batch(kind, batch, new, max(context / batch, new))
        for operator, done in work.step(self._shape, each, self._ranks, self._element).items():
            key = (operator.code, phase)
            if done.flops:
                self.flops[key] += done.flops * times * self._ranks
            if done.memory_bytes:
                self.memory_bytes[key] += done.memory_bytes * times * self._ranks
