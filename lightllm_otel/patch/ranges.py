"""NVTX ranges around the operators, for Nsight: ``LIGHTLLM_OTEL_NVTX=1``. Inside CUDA graphs there are none."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from lightllm_otel.guard import Guard, log
from lightllm_otel.patch.ledger import Ledger
from lightllm_otel.patch.slots import LAYER_SLOTS, POST_SLOTS, PRE_SLOTS, Slot
from lightllm_otel.vocabulary import Stage

Push = Callable[[str], Any]
Pop = Callable[[], Any]


def nvtx() -> tuple[Push, Pop] | None:
    """Torch's, tried out once; None, and one log line, where it has none."""
    import torch

    push: Push = torch.cuda.nvtx.range_push
    pop: Pop = torch.cuda.nvtx.range_pop
    try:
        push("lightllm-otel")
        pop()
    except Exception as error:  # noqa: BLE001 - whatever is missing, there are no ranges then
        log.error("LIGHTLLM_OTEL_NVTX=1 has no effect: torch has no NVTX here (%s)", error)
        return None
    return push, pop


def install(model: Any, ledger: Ledger, guard: Guard, push: Push, pop: Pop) -> int:
    """Around whatever the slots hold now, our own measuring included. Returns how many there are."""
    places: list[tuple[Any, str, tuple[Slot, ...]]] = [(getattr(model, "pre_infer", None), "", PRE_SLOTS)]
    places += [(layer, f" {number}", LAYER_SLOTS) for number, layer in enumerate(getattr(model, "layers_infer", ()))]
    places.append((getattr(model, "post_infer", None), "", POST_SLOTS))
    count = 0
    for owner, layer, slots in places:
        for slot in slots:
            for name in slot.names:
                if callable(getattr(owner, name, None)):
                    with guard(Stage.PATCH):
                        label = f"{slot.operator}{layer}"
                        around = functools.partial(ranged, label=label, push=push, pop=pop, guard=guard)
                        ledger.replace(owner, name, around)
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
