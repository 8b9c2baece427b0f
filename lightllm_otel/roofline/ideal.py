"""The least time that hardware leaves for a step's work, and what bounds each operator."""

from __future__ import annotations

import dataclasses

from lightllm_otel.records.vocabulary import Operator, Phase
from lightllm_otel.roofline import links, work
from lightllm_otel.roofline.gpus import Gpu
from lightllm_otel.roofline.links import Link
from lightllm_otel.roofline.shape import ModelShape
from lightllm_otel.roofline.work import Batch, OperatorWork

COMPUTE, MEMORY, LINK = "compute", "memory", "link"


@dataclasses.dataclass(frozen=True)
class Ideal:
    """``seconds``: of all calls of the operator in one step of one rank, at the GPU's peaks."""

    work: OperatorWork
    seconds: float
    bound: str


def operator(operator: Operator, work: OperatorWork, gpu: Gpu, link: Link | None, ranks: int) -> Ideal:
    """The longer of computing and moving; of a collective its own model."""
    if link is not None and work.payloads:
        seconds = sum(calls * links.ring_seconds(operator.value, size, ranks, link) for _, size, calls in work.payloads)
        return Ideal(work, seconds, LINK)
    computing, moving = work.flops / gpu.flops, work.memory_bytes / gpu.memory_bytes_per_second
    return Ideal(work, max(computing, moving), COMPUTE if computing > moving else MEMORY)


def step(
    shape: ModelShape, batch: Batch, gpu: Gpu, ranks: int, link: Link | None, element: float = 2
) -> dict[Operator, Ideal]:
    table = work.step(shape, batch, ranks, element)
    return {each: operator(each, table[each], gpu, link, ranks) for each in Operator if each in table}


def ridge(gpu: Gpu) -> float:
    """FLOPs per byte at which computing takes as long as moving: above it an operator is bound by compute."""
    return gpu.flops / gpu.memory_bytes_per_second


def prefill(requests: int, input_tokens: int) -> Batch:
    return Batch(Phase.PREFILL, requests, input_tokens, input_tokens)


def decode(requests: int, input_tokens: int, output_tokens: int) -> Batch:
    """The mean step of a generation: in its middle."""
    return Batch(Phase.DECODE, requests, 1, input_tokens + (output_tokens + 1) / 2)
