"""NVTX ranges around the operators, for Nsight: ``LIGHTLLM_OTEL_NVTX=1``. Inside CUDA graphs there are none."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from lightllm_otel.contracts.patch_set import PatchSet
from lightllm_otel.guard import Guard
from lightllm_otel.records.vocabulary import Stage
from lightllm_otel.worker.gpu.profiler import Pop, Push
from lightllm_otel.worker.host.layers import layers_of


def install(model: Any, patch_set: PatchSet, guard: Guard, push: Push, pop: Pop) -> int:
    """Around whatever the functions of the table are now, our own measuring included. Returns how many there are."""
    count = 0
    with guard(Stage.PATCH):
        for layer in layers_of(model):
            for place in layer.places.values():
                with guard(Stage.PATCH):
                    label = f"{place.slot.operator} {place.layer}" if place.layer >= 0 else place.slot.operator.value
                    around = functools.partial(ranged, label=label, push=push, pop=pop, guard=guard)
                    patch_set.replace(place.owner, place.name, around)
                    count += 1
    return count


def ranged(host: Callable[..., Any], label: str, push: Push, pop: Pop, guard: Guard) -> Callable[..., Any]:
    measure = guard(Stage.MEASURE)

    @functools.wraps(host)
    def in_range(*args: Any, **kwargs: Any) -> Any:
        with measure:
            push(label)
        try:
            return host(*args, **kwargs)
        finally:
            with measure:
                pop()

    return in_range
