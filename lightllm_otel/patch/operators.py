"""Wrap the slots of a model's layers, and the collectives: the hot path, where Python runs for every operator."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from lightllm_otel.guard import Guard
from lightllm_otel.measure.marking import Marking
from lightllm_otel.measure.marks import Mark, pack
from lightllm_otel.measure.timer import Timer
from lightllm_otel.patch.closures import as_operator, handing_on
from lightllm_otel.patch.ledger import Ledger
from lightllm_otel.patch.slots import (
    GROUP_LEAVES,
    LAYER_SLOTS,
    POST_SLOTS,
    PRE_SLOTS,
    TORCH_LEAVES,
    Leaf,
    Slot,
)
from lightllm_otel.vocabulary import Implementation, Operator, Stage

Host = Callable[..., Any]
INSTALLED, MISSING = "installed", "missing"


def install(model: Any, timer: Timer, ledger: Ledger, guard: Guard) -> dict[str, str]:
    """Wrap every slot that this model has. Returns which operators were found, for doctor and ``/metrics``.

    A slot that cannot be wrapped is reported as missing; the others go on.
    """
    found: dict[str, str] = {}
    places: list[tuple[Any, int, tuple[Slot, ...]]] = [(getattr(model, "pre_infer", None), -1, PRE_SLOTS)]
    places += [(layer, number, LAYER_SLOTS) for number, layer in enumerate(getattr(model, "layers_infer", ()))]
    places += [(getattr(model, "post_infer", None), -1, POST_SLOTS)]
    for owner, layer, slots in places:
        for slot in slots:
            found.setdefault(slot.operator.value, MISSING)
            if _install_slot(owner, layer, slot, timer, ledger, guard):
                found[slot.operator.value] = INSTALLED
    return found


def _install_slot(owner: Any, layer: int, slot: Slot, timer: Timer, ledger: Ledger, guard: Guard) -> bool:
    own = timer.marks.code(Mark(slot.operator, layer))
    lead = None
    if slot.leads is not None:
        # Before the first layer there is no residual to add, only what little the host does in between.
        leads = Operator.GAP if layer == 0 and slot.operator is Operator.ATTN_NORM else slot.leads
        lead = timer.marks.code(Mark(leads, layer))
    between = timer.marks.code(Mark(Operator.GAP))
    wrapped = False
    for name in slot.names:
        if callable(getattr(owner, name, None)):
            with guard(Stage.PATCH):
                ledger.replace(owner, name, lambda host: timed(host, timer, guard, own, lead, between))
                wrapped = True
    return wrapped


def timed(host: Host, timer: Timer, guard: Guard, own: int, lead: int | None, between: int) -> Host:
    """``host`` as an operator (see :func:`as_operator`); an error of ours ends the measuring."""
    return as_operator(host, timer, own, lead, between, functools.partial(guard.caught, Stage.MEASURE))


class Transport:
    """Which library moves the data of the collective that is running.

    LightLLM's group chooses for each call between a kernel of its own and torch: where no leaf of torch was reached by
    the end of its method, it was its own.
    """

    def __init__(self, backend: Callable[[], str] = lambda: "") -> None:
        self.reached_torch = False
        self._backend = backend

    @functools.cached_property
    def torch(self) -> Implementation:
        """torch's backend for tensors on the GPU (``nccl``, or ``cpu:gloo,cuda:nccl``); asked once."""
        try:
            name = self._backend()
        except (RuntimeError, ValueError):  # a label is no reason to stop measuring
            return Implementation.UNKNOWN
        known = (Implementation.NCCL, Implementation.GLOO)
        return next((each for each in known if each.value in name), Implementation.UNKNOWN)


def install_all_collectives(group_class: Any, timer: Timer, ledger: Ledger, guard: Guard) -> None:
    """The collectives of ``torch.distributed``, and of LightLLM's process groups where the version has them."""
    import torch.distributed

    transport = Transport(torch.distributed.get_backend)
    install_collectives(torch.distributed, TORCH_LEAVES, timer, ledger, guard, transport)
    if group_class is not None:
        install_collectives(group_class, GROUP_LEAVES, timer, ledger, guard, transport)


def install_collectives(
    owner: Any, leaves: tuple[Leaf, ...], timer: Timer, ledger: Ledger, guard: Guard, transport: Transport
) -> list[str]:
    """Wrap the leaves that this module or class has; the names of those that were wrapped."""
    names = []
    for leaf in leaves:
        if callable(getattr(owner, leaf.name, None)):
            with guard(Stage.PATCH):
                wrap = functools.partial(collective, leaf=leaf, timer=timer, guard=guard, transport=transport)
                ledger.replace(owner, leaf.name, wrap)
                names.append(leaf.name)
    return names


def collective(host: Host, leaf: Leaf, timer: Timer, guard: Guard, transport: Transport) -> Host:
    """``host``, as an observation of its own, cut out of the operator that called it."""
    measure = guard(Stage.MEASURE)
    of_torch = leaf in TORCH_LEAVES

    def start(marking: Marking) -> int:
        """Returns the code of the collective's own mark."""
        inside = marking.context >= 0
        around = marking.context if inside else marking.codes[-1] if marking.codes else timer.gap
        own = timer.marks.collective(leaf.operator, around)
        marking.in_collective = True
        transport.reached_torch = of_torch
        if inside:
            marking.mark(timer.marks.part(marking.context))
        elif marking.pairs:
            marking.mark(timer.gap)
        return own

    def end(marking: Marking, own: int, data: Any) -> None:
        marking.in_collective = False
        how = transport.torch if transport.reached_torch else Implementation.CUSTOM
        if how is Implementation.NCCL:
            marking.mark_behind_nccl(own)
        else:
            marking.mark(own)
        marking.payloads.append((len(marking.codes) - 1, pack(payload_bytes(data) if data is not None else 0, how)))

    def measured(host: Host, *args: Any, **kwargs: Any) -> Any:
        marking = timer.armed
        if marking is None or marking.in_collective:
            if of_torch:
                transport.reached_torch = True
            return host(*args, **kwargs)
        own = -1
        with measure:
            own = start(marking)
        try:
            return host(*args, **kwargs)
        finally:
            with measure:
                if own >= 0:
                    end(marking, own, args[leaf.payload] if len(args) > leaf.payload else kwargs.get(leaf.keyword))

    return functools.wraps(host)(handing_on(host, timer, measured))


def payload_bytes(data: Any) -> int:
    """Bytes of a tensor or of a list of tensors, from their shapes alone."""
    if isinstance(data, (list, tuple)):
        return sum(payload_bytes(part) for part in data)
    return int(data.numel() * data.element_size())
