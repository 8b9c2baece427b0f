"""Theory for a run: its model's shape, GPU and link, and the ideal time at the sizes of its steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lightllm_otel.exporter.link import NVLINK, PCIE, SAME_GPU
from lightllm_otel.records.vocabulary import Operator, Phase
from lightllm_otel.reduce import analytic
from lightllm_otel.roofline import gpus, ideal, links, shape
from lightllm_otel.roofline.gpus import Gpu
from lightllm_otel.roofline.links import Link
from lightllm_otel.roofline.shape import ModelShape
from lightllm_otel.roofline.work import Batch


@dataclasses.dataclass(frozen=True)
class Deployment:
    """Model and hardware of a run. ``link``: None for a single rank, or if it is unknown. ``element``: bytes of a weight."""

    shape: ModelShape | None
    gpu: Gpu | None
    link: Link | None
    ranks: int
    element: float


def machine(facts: Mapping[str, Any], given: ModelShape | None = None, gpu: Gpu | None = None) -> Deployment:
    """Return the deployment that a rank's facts describe. Given values take precedence; unknown ones stay None."""
    own = given
    if own is None:
        try:
            own = shape.from_config(facts.get("config") or {}, str(facts.get("model", "")))
        except shape.UnknownModel:
            own = None
    ranks = int(facts.get("tp", 1))
    try:
        gpu = gpu or gpus.find(str(facts.get("gpu_name", "")))
    except gpus.UnknownGpu:
        gpu = None
    said = facts.get("link")
    try:
        link = (
            None
            if gpu is None or said == SAME_GPU
            else links.link_of(gpu, ranks, said if said in (NVLINK, PCIE) else None)
        )
    except links.NoLink:
        link = None
    return Deployment(own, gpu, link, ranks, shape.DTYPE_BYTES.get(str(facts.get("dtype", "")), 2))


def unlike(facts: Mapping[str, Any], given: ModelShape | None) -> str:
    """Return why a recording cannot be of this model, or an empty string."""
    layers = int(facts.get("layers") or 0)
    if given is None or not layers or layers == given.layers:
        return ""
    return f"it is of {facts.get('model') or 'a model'} with {layers} layers, and {given.name} has {given.layers}"


def batch(phase: Phase, requests: float, tokens: float, context: float) -> Batch:
    """Return a step of this mean size; the requests of a prefill are taken as equally long, because only their sum is known."""
    return analytic.batch_of(phase, max(requests, 1.0), tokens, context)


@dataclasses.dataclass
class RequiredWork:
    """FLOPs and bytes that one rank needed for an operator, over many steps."""

    flops: float = 0.0
    memory_bytes: float = 0.0


def load(steps: np.ndarray, phase: Phase, on: Deployment) -> dict[Operator, RequiredWork]:
    """Return the work of each operator in steps of one phase and rank (``STEP``, shape (n,))."""
    if on.shape is None or not len(steps):
        return {}
    found = analytic.required(steps, on.shape, on.ranks, on.element)
    return {operator: RequiredWork(done.flops, done.memory_bytes) for (operator, _), done in found.items()}


def ratios(
    first: Mapping[str, Any], second: Mapping[str, Any], phase: Phase, size: tuple[float, float, float],
    given: ModelShape | None = None,
) -> dict[str, float]:  # fmt: skip
    """Return the ideal time on the second machine divided by that on the first, for each operator and for ``step``; empty if
    unknown."""
    tables = []
    for facts in (first, second):
        on = machine(facts, given)
        if on.shape is None or on.gpu is None:
            return {}
        tables.append(ideal.step(on.shape, batch(phase, *size), on.gpu, on.ranks, on.link, on.element))
    one, two = tables
    # Without a link a collective has no least time.
    both = [each for each in one if each in two and one[each].seconds and two[each].seconds]
    found = {each.value: two[each].seconds / one[each].seconds for each in both}
    return {**found, "step": sum(each.seconds for each in two.values()) / sum(each.seconds for each in one.values())}
