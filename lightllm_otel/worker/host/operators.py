"""Hooks of operators: wrap the functions of a model's layers, and the collectives. Python runs for each of their calls."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

from lightllm_otel.contracts.binding import Arguments
from lightllm_otel.contracts.patch_set import PatchSet
from lightllm_otel.guard import Guard
from lightllm_otel.records.vocabulary import Implementation, Operator, Site, Stage
from lightllm_otel.worker.gpu.agreement import torch_distributed
from lightllm_otel.worker.gpu.boundaries import DIRECTLY, Boundary, pack
from lightllm_otel.worker.gpu.boundary_recorder import BoundaryRecorder
from lightllm_otel.worker.gpu.timer import Timer
from lightllm_otel.worker.host import between
from lightllm_otel.worker.host.closures import as_inner_operator, as_operator, handing_on
from lightllm_otel.worker.host.layers import Layer, Place, layers_of, replaceable
from lightllm_otel.worker.host.slots import (
    GROUP_LEAVES,
    LAYER_SLOTS,
    OF_A_LAYER,
    POST_SLOTS,
    PRE_SLOTS,
    PROVIDERS,
    TORCH_LEAVES,
    Leaf,
)

Host = Callable[..., Any]
INSTALLED, MISSING = "installed", "missing"


class Found(dict[str, str]):
    """State of each operator, ``installed`` or ``missing``, for ``/metrics``.

    ``layers``: facts for doctor by class of layer: the number of ``layers``, their ``operators``, the ``missing`` operators,
    calls whose time is ``other``, and why their code is ``unread``. The last three are left out where they are empty.
    """

    def __init__(self) -> None:
        slots = (*PRE_SLOTS, *LAYER_SLOTS, *POST_SLOTS)
        super().__init__({slot.operator.value: MISSING for slot in slots if slot.operator is not Operator.OTHER})
        self.layers: dict[str, dict[str, Any]] = {}

    def add(self, layer: Layer) -> None:
        """Add the operators of a layer."""
        self.update({operator: INSTALLED for operator in layer.operators if operator in self})
        if layer.number < 0:
            return
        facts = self.layers.setdefault(layer.kind, {"layers": 0, "operators": []})
        facts["layers"] += 1
        said = {
            "operators": layer.operators,
            "other": layer.other,
            "unread": [layer.work.unread] if layer.work.unread else [],
        }
        for fact, names in said.items():
            if names:
                facts[fact] = list(dict.fromkeys([*facts.get(fact, ()), *names]))
        facts["missing"] = [operator.value for operator in OF_A_LAYER if operator.value not in facts["operators"]]
        if not facts["missing"]:
            del facts["missing"]


def install(model: Any, timer: Timer, patch_set: PatchSet, guard: Guard) -> Found:
    """Wrap every function of the table that this model has, and return which operators were found.

    A function that cannot be wrapped is reported as missing; the others are wrapped.
    """
    found = Found()
    with guard(Stage.PATCH):
        for layer in layers_of(model):
            wrapped = {name: place for name, place in layer.places.items() if _install(place, timer, patch_set, guard)}
            _approach(layer, timer)
            found.add(dataclasses.replace(layer, places=wrapped))
    return found


def _install(place: Place, timer: Timer, patch_set: PatchSet, guard: Guard) -> bool:
    try:
        patch_set.replace(place.owner, place.name, lambda host: timed(host, place, timer, guard))
    except (AttributeError, TypeError):  # an object whose attributes cannot be set is left alone
        return False
    return True


def timed(host: Host, place: Place, timer: Timer, guard: Guard) -> Host:
    """Return ``host`` as the operator of this place. An error of the plugin ends the timing of steps."""
    boundary_codes, slot, layer = timer.boundary_codes, place.slot, place.layer
    own = boundary_codes.code(Boundary(slot.operator, layer))
    lead = None if place.lead is None else boundary_codes.code(Boundary(place.lead, layer))
    caught = functools.partial(guard.caught, Stage.MEASURE)
    if slot.inside:
        boundary_codes.locate(own, Site.ATTENTION)
        return as_inner_operator(host, timer, own, boundary_codes.code(Boundary(Operator.OTHER, layer)), caught)
    part = boundary_codes.part(own)
    # The gather of tokens before the head has already recorded the head's start.
    begun = (part, lead) if slot in POST_SLOTS and lead is not None else ()
    return as_operator(host, timer, part if slot.part else own, lead, timer.gap, caught, slot.unless_returned, begun)


def _approach(layer: Layer, timer: Timer) -> None:
    """Set the work between an operator and the collective after it, where the layer's code shows it."""
    boundary_codes = timer.boundary_codes
    for last, kinds in layer.work.collectives.items():
        if last in layer.places:
            lead = between.claimed(kinds)
            code = boundary_codes.code(Boundary(layer.places[last].slot.operator, layer.number))
            boundary = DIRECTLY if lead is None else boundary_codes.code(Boundary(lead, layer.number))
            if boundary_codes.approach.setdefault(code, boundary) != boundary:  # two functions of one operator
                boundary_codes.approach[code] = boundary_codes.code(Boundary(Operator.OTHER, layer.number))


class Transport:
    """Library that moves the data of the running collective. ``how``: what is known of it so far.

    LightLLM's group chooses between torch and other libraries for each call, so the hook of the library that is reached sets
    ``how``. If no hook does, LightLLM has called a kernel of its own.
    """

    def __init__(self, backend: Callable[[], str] = lambda: "") -> None:
        self.how = Implementation.UNKNOWN
        self._backend = backend

    @functools.cached_property
    def torch(self) -> Implementation:
        """Return torch's backend for tensors on the GPU (``nccl``, or ``cpu:gloo,cuda:nccl``). It is read once."""
        try:
            name = self._backend()
        except (RuntimeError, ValueError):  # measuring goes on without this label
            return Implementation.UNKNOWN
        known = (Implementation.NCCL, Implementation.GLOO)
        return next((each for each in known if each.value in name), Implementation.UNKNOWN)


def install_all_collectives(group_class: Any, timer: Timer, patch_set: PatchSet, guard: Guard) -> None:
    """Wrap the collectives of ``torch.distributed``, and those of LightLLM's process groups if this version has them."""
    distributed = torch_distributed()
    transport = Transport(distributed.get_backend)
    install_collectives(distributed, TORCH_LEAVES, timer, patch_set, guard, transport)
    if group_class is not None:
        install_collectives(group_class, GROUP_LEAVES, timer, patch_set, guard, transport)
        module = sys.modules.get(str(getattr(group_class, "__module__", "")))
        groups = getattr(getattr(module, "dist_group_manager", None), "groups", ())
        for group in groups:
            install_providers(group, timer, patch_set, guard, transport)


def install_collectives(
    owner: Any, leaves: tuple[Leaf, ...], timer: Timer, patch_set: PatchSet, guard: Guard, transport: Transport
) -> list[str]:
    """Wrap the leaves that this module or class has, and return the names of those that were wrapped."""
    names = []
    for leaf in leaves:
        if replaceable(owner, leaf.name):
            with guard(Stage.PATCH):
                wrap = functools.partial(collective, leaf=leaf, timer=timer, guard=guard, transport=transport)
                patch_set.replace(owner, leaf.name, wrap)
                names.append(leaf.name)
    return names


def install_providers(group: Any, timer: Timer, patch_set: PatchSet, guard: Guard, transport: Transport) -> list[str]:
    """Wrap the libraries other than torch that this group of LightLLM's may choose, and return the names of those it has."""
    names = []
    for provider in PROVIDERS:
        owner = getattr(group, provider.owner, None)
        if replaceable(owner, provider.name):
            with guard(Stage.PATCH):
                wrap = functools.partial(_provider, how=provider.implementation, timer=timer, transport=transport)
                patch_set.replace(owner, provider.name, wrap)
                names.append(provider.owner)
    return names


def _provider(host: Host, how: Implementation, timer: Timer, transport: Transport) -> Host:
    def progress(host: Host, recorder: BoundaryRecorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if recorder.in_collective:
            transport.how = how
        return host(*args, **kwargs)

    return handing_on(host, timer, progress)


def collective(host: Host, leaf: Leaf, timer: Timer, guard: Guard, transport: Transport) -> Host:
    """Return ``host`` as a separate collective, cut out of the operator that calls it."""
    return handing_on(host, timer, _Collective(host, leaf, timer, guard, transport))


class _Collective:
    """Recording of the calls of one leaf. The time before a call does not belong to the call."""

    def __init__(self, host: Host, leaf: Leaf, timer: Timer, guard: Guard, transport: Transport) -> None:
        self._arguments = Arguments(host)
        self._leaf = leaf
        self._of_torch = leaf in TORCH_LEAVES
        self._boundary_codes, self._gap = timer.boundary_codes, timer.gap
        self._measure = guard(Stage.MEASURE)
        self._transport = transport

    def __call__(self, host: Host, recorder: BoundaryRecorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if recorder.in_collective:
            if self._of_torch:
                self._transport.how = self._transport.torch
            return host(*args, **kwargs)
        own, payload = -1, 0
        with self._measure:
            # Before the call, because some of LightLLM's libraries put the result into new memory and rebind the tensor to it.
            payload = payload_bytes(self._payload(args, kwargs))
            own = self._start(recorder)
        try:
            return host(*args, **kwargs)
        finally:
            with self._measure:
                if own >= 0:
                    self._end(recorder, own, payload)

    def _payload(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        every = (self._arguments.get(name, args, kwargs) for name in self._leaf.payload)
        return next((data for data in every if data is not None), None)

    def _start(self, recorder: BoundaryRecorder) -> int:
        """Record what comes before the collective, and return the code of the collective's own boundary."""
        around = recorder.context
        if around >= 0:
            recorder.record(self._boundary_codes.part(around))
        else:
            around = recorder.codes[-1] if recorder.codes else self._gap
            lead = self._gap if recorder.pairs else self._boundary_codes.before_collective(around)
            if lead != DIRECTLY:
                recorder.record(lead)
            if lead in self._boundary_codes.residuals:  # the add ends the operator's branch
                around = lead
        own = self._boundary_codes.collective(self._leaf.operator, around)
        self._transport.how = self._transport.torch if self._of_torch else Implementation.CUSTOM
        recorder.in_collective = True
        return own

    def _end(self, recorder: BoundaryRecorder, own: int, payload: int) -> None:
        recorder.in_collective = False
        how = self._transport.how
        if how is Implementation.NCCL:
            recorder.record_behind_nccl(own)
        else:
            recorder.record(own)
        recorder.payloads.append((len(recorder.codes) - 1, pack(payload, how)))


def payload_bytes(data: Any) -> int:
    """Return the bytes of a tensor or of a list of tensors, from their shapes; 0 for anything else."""
    if isinstance(data, (list, tuple)):
        return sum(payload_bytes(part) for part in data)
    return int(data.numel() * data.element_size()) if hasattr(data, "numel") else 0
