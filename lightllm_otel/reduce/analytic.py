"""FLOPs and bytes that steps had to compute and to move, by the analytic model; the same live and offline."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from lightllm_otel.records.batch import RecordBatch
from lightllm_otel.records.vocabulary import Operator, Phase
from lightllm_otel.reduce.distinct import distinct
from lightllm_otel.roofline import shape, work
from lightllm_otel.roofline.gpus import Gpu, UnknownGpu, find
from lightllm_otel.roofline.shape import ModelShape, UnknownModel


def required(
    steps: np.ndarray, model: ModelShape, ranks: int, element: float
) -> dict[tuple[Operator, int], work.OperatorWork]:
    """Return the FLOPs and bytes that one of ``ranks`` ranks needs for all of these steps, by operator and phase code.

    ``steps``: ``STEP``, shape (n,). ``element``: bytes of a weight. Steps of one phase, batch and tokens are put together, at
    their mean context, because everything is linear in it. Only sums are known of the requests of a prefill, so they are taken
    as equally long. Steps without tokens of requests need nothing.
    """
    total: dict[tuple[Operator, int], work.OperatorWork] = defaultdict(work.OperatorWork)
    for (phase,) in distinct(steps["phase"]):
        own = steps[steps["phase"] == phase]
        sizes, group = np.unique(own["batch"].astype(np.uint64) << 32 | own["tokens"], return_inverse=True)
        counts, contexts = np.bincount(group), np.bincount(group, own["context"].astype(float))
        for size, count, context in zip(sizes.tolist(), counts.tolist(), contexts.tolist()):
            requests, tokens = size >> 32, size & 0xFFFFFFFF
            if not requests or not tokens:
                continue
            each = batch_of(Phase(Phase.of(phase)), requests, tokens, context / count)
            for operator, done in work.step(model, each, ranks, element).items():
                sums = total[operator, phase]
                sums.flops += done.flops * count
                sums.memory_bytes += done.memory_bytes * count
    return total


def batch_of(phase: Phase, requests: float, tokens: float, context: float) -> work.Batch:
    """Return a step of this size for the analytic model. ``tokens``: new ones. ``context``: tokens attended to, by all requests.

    Tokens of a request need not be whole: a step's tokens divided by its requests, so that their product is the step's again.
    """
    new = max(tokens / requests, 1.0) if phase is not Phase.DECODE else 1.0
    return work.Batch(phase, requests, new, max(context / requests, new))


class Analytic:
    """``flops`` and ``memory_bytes``: sums over steps and ranks, by operator and phase codes. ``gpu``: None if it is unknown."""

    def __init__(self) -> None:
        self.flops: dict[tuple[int, int], float] = defaultdict(float)
        self.memory_bytes: dict[tuple[int, int], float] = defaultdict(float)
        self.gpu: Gpu | None = None
        self._shape: ModelShape | None = None
        self._ranks = 1
        self._element = 2.0

    def set_facts(self, facts: Mapping[str, Any]) -> None:
        """Read model and GPU from the facts of any rank. A model or a GPU that is not known leaves its part out."""
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

    def add(self, rank: int, batch: RecordBatch) -> None:
        """Add the steps of the rank that counts for its group: each rank has the same work."""
        if self._shape is None or not len(batch):
            return
        for (operator, phase), done in required(batch.steps, self._shape, self._ranks, self._element).items():
            if done.flops:
                self.flops[operator.code, phase] += done.flops * self._ranks
            if done.memory_bytes:
                self.memory_bytes[operator.code, phase] += done.memory_bytes * self._ranks
