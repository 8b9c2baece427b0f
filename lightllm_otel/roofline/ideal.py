"""Ideal step times: the roofline of each operator, and the hardware limit that bounds it."""

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
    """Ideal time of one operator in one step of one rank.

    ``seconds``: all of its calls together, at the peak rates of the GPU. ``bound``: ``compute``, ``memory`` or ``link``.
    """

    work: OperatorWork
    seconds: float
    bound: str


def operator(operator: Operator, work: OperatorWork, gpu: Gpu, link: Link | None, ranks: int) -> Ideal:
    """Return the roofline of one operator: the longer of its compute time and its memory time.

    A collective over a ``link`` takes the seconds of :func:`.links.ring_seconds` instead.
    """
    if link is not None and work.payloads:
        seconds = sum(calls * links.ring_seconds(operator.value, size, ranks, link) for _, size, calls in work.payloads)
        return Ideal(work, seconds, LINK)
    computing, moving = work.flops / gpu.flops, work.memory_bytes / gpu.memory_bytes_per_second
    return Ideal(work, max(computing, moving), COMPUTE if computing > moving else MEMORY)


def step(
    shape: ModelShape, batch: Batch, gpu: Gpu, ranks: int, link: Link | None, element: float = 2
) -> dict[Operator, Ideal]:
    """Return the ideal of each operator in one step of one rank.

    ``element``: bytes of a weight, of an activation, and of a cached key or value.
    """
    table = work.step(shape, batch, ranks, element)
    return {each: operator(each, table[each], gpu, link, ranks) for each in Operator if each in table}


def ridge(gpu: Gpu) -> float:
    """Return the ridge point in FLOPs per byte: above it an operator is bound by compute, below it by memory bandwidth."""
    return gpu.flops / gpu.memory_bytes_per_second


def prefill(requests: int, input_tokens: int) -> Batch:
    """Return the batch of a prefill step in which every request computes its whole prompt."""
    return Batch(Phase.PREFILL, requests, input_tokens, input_tokens)


def decode(requests: int, input_tokens: int, output_tokens: int) -> Batch:
    """Return the batch of the mean decode step, which is the one in the middle of the generation."""
    return Batch(Phase.DECODE, requests, 1, input_tokens + (output_tokens + 1) / 2)
