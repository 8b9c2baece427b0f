"""How the plugin counts GPU work that lies in no operator: found out by letting its hooks loose on a version's own layers."""

from __future__ import annotations

import itertools
import types
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Optional, Protocol, Union

from lightllm_otel.contracts.patch_set import PatchSet
from lightllm_otel.guard import Guard
from lightllm_otel.records.vocabulary import Operator
from lightllm_otel.worker.gpu.boundaries import Boundary, BoundaryCodes
from lightllm_otel.worker.gpu.boundary_recorder import BoundaryRecorder
from lightllm_otel.worker.host import layers, operators
from lightllm_otel.worker.host.layers import Layer
from lightllm_otel.worker.host.slots import ENTRIES, LAYER_SLOTS, TORCH_LEAVES, WEIGHTS
from lightllm_source.forward import Forward, Roles
from lightllm_source.objects import Objects
from lightllm_source.slots import Slots
from lightllm_source.tree import Found, Tree

LAYER, PRE, POST, COLLECTIVE, LAYERS, END = "layer", "pre", "post", "collective", "layers", ""
_FLAGS = 3  # attributes of a layer whose values are all tried; nothing is said of more


class Point(NamedTuple):
    """Where an interval begins or ends: the call of a slot or of a collective, or the end of a step. ``variant``: of the layer.
    ``number``: which layer it is; an interval ends in the same one or in the next.
    """

    role: str
    name: str
    variant: int = 0
    number: int = 1


class Variant(NamedTuple):
    """A way in which a layer class is made. ``flags``: its attributes that stay true or false; ``slots``: those it then has."""

    flags: Mapping[str, bool]
    slots: Slots


class Attribution(Protocol):
    """How the GPU time of one model is counted."""

    @property
    def variants(self) -> Sequence[Variant]: ...

    @property
    def ends(self) -> Mapping[str, Slots]:
        """The slots of what comes before and after all layers: PRE and POST."""

    @property
    def unclaimed(self) -> Sequence[str]:
        """Calls of a layer whose time is ``other``."""

    @property
    def unread(self) -> Sequence[str]:
        """Why the code of a layer is not understood."""

    def counted(self, before: Point, at: Point) -> Optional[str]:
        """Return the operator of work between two points; None where ``at`` does not end its interval."""

    def lacking(self, progress: Collection[Operator]) -> list[Operator]:
        """Return the operators that a layer lacks; ``reached``: those of the slots that its forwards call."""


class Plugin:
    """What the plugin does with the layers of one model. ``found``: as doctor has it of a server."""

    def __init__(self, tree: Tree, roles: Roles) -> None:
        self._objects = Objects(tree)
        self._roles = roles
        self._models: dict[tuple[int, ...], _Hooked] = {}
        self._counted: dict[tuple[Point, Point], Optional[str]] = {}
        flags = _flags(tree, roles.layer, _Hooked(self._model([{}])).slots(0))
        ways = [dict(zip(flags, values)) for values in itertools.product((True, False), repeat=len(flags))]
        self._ways = ways
        every = self._hooked(*range(len(ways)))
        self.variants = [Variant(way, every.slots(number)) for number, way in enumerate(ways)]
        self.ends = {PRE: every.slots(PRE), POST: every.slots(POST)}
        self.found = every.found
        facts = self.found.layers[roles.layer.what.name]  # type: ignore[union-attr]
        self.unclaimed = facts.get("other", ())
        self.unread = facts.get("unread", ())
        self._missing = facts.get("missing", ())

    def _hooked(self, *order: int) -> _Hooked:
        """Return a model whose layers are of these variants, in this order, with the plugin's hooks in it."""
        if order not in self._models:
            self._models[order] = _Hooked(self._model([self._ways[number] for number in order]))
        return self._models[order]

    def _model(self, ways: Sequence[Mapping[str, bool]]) -> Any:
        make, roles = self._objects.make, self._roles
        parts = {slot.on for slot in LAYER_SLOTS}
        called = {name for slot in LAYER_SLOTS if slot.on == WEIGHTS for name in slot.names}
        return types.SimpleNamespace(
            pre_infer=roles.pre and make(roles.pre, {}),
            layers_infer=[make(roles.layer, way, parts) for way in ways],
            post_infer=roles.post and make(roles.post, {}),
            trans_layers_weight=[roles.weights and make(roles.weights, {}, called) for _ in ways],
        )

    def counted(self, before: Point, at: Point) -> Optional[str]:
        if (before, at) not in self._counted:
            numbers = {point.number: point.variant for point in (before, at) if point.role == LAYER}
            last = max(numbers, default=0)
            model = self._hooked(*(numbers.get(number, before.variant) for number in range(last + 1)))
            self._counted[before, at] = model.operator(before, at)
        return self._counted[before, at]

    def lacking(self, progress: Collection[Operator]) -> list[Operator]:
        return [Operator(name) for name in self._missing]


def _flags(tree: Tree, layer: Found, slots: Slots) -> list[str]:
    """Return attributes of a layer that are true or false, as far as it asks for them outside of its slots."""
    forward = Forward(tree, layer, slots)
    for entry in ENTRIES:
        forward.graph(entry)
    return [name for name in sorted(forward.asked) if tree.member(layer, name, instance=True) is not None][:_FLAGS]


class _Hooked:
    """A made-up model with the plugin's hooks in it."""

    def __init__(self, model: Any) -> None:
        self._boundary_codes = BoundaryCodes()
        gap = self._boundary_codes.code(Boundary(Operator.GAP))
        self._timer: Any = types.SimpleNamespace(armed=None, failed=False, boundary_codes=self._boundary_codes, gap=gap)
        roles = (PRE, *range(len(model.layers_infer)), POST)
        self._layers: dict[Union[str, int], Layer] = dict(zip(roles, layers.layers_of(model)))
        patch_set, guard = PatchSet(), Guard(strict=True)
        self.found = operators.install(model, self._timer, patch_set, guard)
        self._torch = types.ModuleType("torch.distributed")
        vars(self._torch).update({leaf.name: lambda *args: None for leaf in TORCH_LEAVES})
        operators.install_collectives(self._torch, TORCH_LEAVES, self._timer, patch_set, guard, operators.Transport())

    def slots(self, role: Union[str, int]) -> Slots:
        """Return what is wrapped of a layer, by its number, or of what comes before or after all of them."""
        return Slots.of(
            (name, place.slot.operator, place.slot.on, place.slot.unless_returned and place.lead is None)
            for name, place in self._layers[role].places.items()
        )

    def operator(self, before: Point, at: Point) -> Optional[str]:
        """Return the operator of the interval that holds loose work between two calls."""
        recorder = _Recorder(self._boundary_codes)
        self._timer.recorder = recorder
        recorder.record(self._timer.gap)  # a step begins
        self._call(before)
        recorder.loose = True
        self._call(at)
        self._timer.recorder = None
        return recorder.operator

    def _call(self, point: Point) -> None:
        if point.role == END:
            self._timer.recorder.record(self._timer.gap)
        elif point.role == COLLECTIVE:
            getattr(self._torch, point.name, self._torch.all_reduce)()
        else:
            place = self._layers[point.number if point.role == LAYER else point.role].places[point.name]
            getattr(place.owner, place.name)()


class _Recorder(BoundaryRecorder):
    """``operator``: that of the first interval that ends after loose work was done."""

    def __init__(self, boundary_codes: BoundaryCodes) -> None:
        super().__init__(capacity=1 << 10)
        self._boundary_codes = boundary_codes
        self.loose = False
        self.operator: Optional[str] = None

    def record(self, code: int) -> None:
        self.codes.append(code)
        if self.loose and self.operator is None:
            self.operator = self._boundary_codes.name(code)
