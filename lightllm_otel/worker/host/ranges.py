"""Ranges around operators: NVTX ranges for Nsight (``LIGHTLLM_OTEL_NVTX=1``), or ranges of torch's profiler.

Inside CUDA graphs there are none.
"""

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
    """Wrap the functions of the table in ranges, which include the plugin's own hooks; return the number of ranges."""
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
    """Return ``host`` with a range around each call."""
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
