"""Layers of a model: the places of the table's functions in them, and the work between these functions."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from types import FunctionType, ModuleType
from typing import Any, NamedTuple, Optional

from lightllm_otel.records.vocabulary import Operator
from lightllm_otel.worker.host import between
from lightllm_otel.worker.host.between import ENTRY, Between, Kind
from lightllm_otel.worker.host.slots import ENTRIES, LAYER_SLOTS, POST_SLOTS, PRE_SLOTS, WEIGHTS, Slot
from lightllm_otel.worker.host.source import undecorated

UNKNOWN: frozenset[Kind] = frozenset(("unknown",))
_FORWARD = "_forward"  # the attribute that weights call when they are called (v1.2.0)


class Place(NamedTuple):
    """Attribute ``name`` of ``owner``, a function of the row ``slot``. ``layer``: its number; -1 outside of all layers.

    ``lead``: the operator of the interval between the boundary before it and its start; None if it follows directly.
    """

    owner: Any
    name: str
    slot: Slot
    layer: int
    lead: Optional[Operator] = None


@dataclasses.dataclass
class Layer:
    """One layer, or what comes before or after all layers (``number`` -1). ``kind``: the name of its class.

    ``places``: by the names of the table. ``work``: what the layer does between them.
    """

    kind: str
    number: int
    places: dict[str, Place]
    work: Between

    @property
    def operators(self) -> list[str]:
        """Return the names of the operators that are timed separately, in the order of the vocabulary."""
        called = {place.slot.operator for name, place in self.places.items() if self.work.unread or self.calls(name)}
        beside = (self.work.left, *self.work.before.values())
        called |= {operator for kinds in beside if (operator := between.claimed(kinds)) is not None}
        return [operator.value for operator in Operator if operator in called - {Operator.OTHER}]

    @property
    def other(self) -> list[str]:
        """Return the names of calls whose time is ``other``, because nothing in the table claims them."""
        every = [self.work.left, *self.work.before.values(), *self.work.collectives.values()]
        unclaimed = (kinds for kinds in every if between.claimed(kinds) is Operator.OTHER)
        return sorted(str(kind) for kind in frozenset().union(*unclaimed))

    def calls(self, name: str) -> bool:
        """Tell whether the layer's code calls the function with this name in the table."""
        return name in self.work.before or self.places[name].slot.inside


def layers_of(model: Any) -> Iterator[Layer]:
    """Yield what comes before all layers, then every layer, then what comes after them, in the order of a forward.

    An object that occurs more than once is yielded once.
    """
    yield _end(getattr(model, "pre_infer", None), PRE_SLOTS, {Operator.EMBEDDING: Operator.GAP})
    left: frozenset[Kind] = frozenset()
    layers = _distinct(model)
    for layer, following in zip(layers, [*layers[1:], None]):
        yield _led(layer, left, following)
        left = UNKNOWN if layer.work.unread else layer.work.left | (left if ENTRY in layer.work.ends else frozenset())
    yield _end(getattr(model, "post_infer", None), POST_SLOTS, {Operator.LM_HEAD: between.claimed(left)})


def _distinct(model: Any) -> list[Layer]:
    weights = list(getattr(model, "trans_layers_weight", None) or ())
    found: dict[int, Layer] = {}
    known: dict[Any, Between] = {}
    for number, layer in enumerate(getattr(model, "layers_infer", None) or ()):
        if id(layer) not in found:
            found[id(layer)] = _read(layer, weights[number] if number < len(weights) else None, number, known)
    return list(found.values())


def _end(owner: Any, slots: Sequence[Slot], leads: dict[Operator, Optional[Operator]]) -> Layer:
    """Return what comes before or after all layers. Its functions are operators; ``leads``: the work before each."""
    places = {name: place for slot in slots for name in slot.names if (place := _place(owner, None, slot, name, -1))}
    behind = Operator.EMBEDDING in leads  # a part of the embedding comes after it, a part of the head before it
    led = {
        name: place if place.slot.part and behind else place._replace(lead=leads.get(place.slot.operator))
        for name, place in places.items()
    }
    return Layer(type(owner).__name__, -1, led, Between(unread="it is no layer"))


def _read(layer: Any, weights: Any, number: int, known: dict[Any, Between]) -> Layer:
    """Return a layer. Among rows that replace each other, those are chosen that the layer's code calls."""
    every = [(name, slot) for slot in LAYER_SLOTS for name in slot.names]
    places = {name: place for name, slot in every if (place := _place(layer, weights, slot, name, number))}
    rows: dict[str, list[Slot]] = {}
    for slot in LAYER_SLOTS:
        if slot.group and slot.names[0] in places:
            rows.setdefault(slot.group, []).append(slot)
    while True:
        taken = {
            name: place for name, place in places.items() if place.slot in rows.get(place.slot.group, [place.slot])[:1]
        }
        work = _work(layer, taken, known)
        called = {place.slot.group for name, place in taken.items() if name in work.before}
        dead = [group for group, left in rows.items() if group not in called and len(left) > 1]
        if work.unread or not dead:
            break
        rows[dead[0]].pop(0)
    kept = {name: place for name, place in taken.items() if not place.slot.helper or work.unread or name in work.before}
    return Layer(type(layer).__name__, number, kept, work)


def _work(layer: Any, places: dict[str, Place], known: dict[Any, Between]) -> Between:
    """Return what the layer does between these places. Layers with the same functions share one result."""
    methods = frozenset(name for name, place in places.items() if not place.slot.on)
    weights = frozenset(name for name, place in places.items() if place.slot.on == WEIGHTS)
    own = getattr(layer, "__dict__", {}).items()
    bound = frozenset((name, undecorated(each, name)) for name, each in own if callable(each))
    flags = frozenset((name, each) for name, each in own if isinstance(each, bool))
    key = (type(layer), methods, weights, bound, flags)
    if key not in known:
        try:
            known[key] = between.read(layer, methods, weights, ENTRIES)
        except Exception as error:  # noqa: BLE001 - code that cannot be analysed is unknown, not an error
            known[key] = Between(unread=f"its source is not understood ({error!r})")
    return known[key]


def _led(layer: Layer, left: frozenset[Kind], following: Optional[Layer]) -> Layer:
    """Return the layer with the leads of its places. ``left``: work between the last boundary before the layer and its start."""
    work, led = layer.work, {}
    for name, place in layer.places.items():
        if work.unread or not layer.calls(name) or place.slot.inside:
            lead: Optional[Operator] = Operator.OTHER
        else:
            lead = between.claimed(work.before[name] | (left if name in work.first else frozenset()))
            if layer.number == 0 and name in work.first and lead is None:
                lead = Operator.GAP  # the little that the host does after the embedding
        led[name] = place._replace(lead=lead)
    # If the next layer may begin with a collective, the work from the end of this one to it is unknown.
    open_ended = following is not None and (following.work.unread or ENTRY in following.work.collectives)
    known = {name: kinds for name, kinds in work.collectives.items() if not (open_ended and name in work.ends)}
    return dataclasses.replace(layer, places=led, work=dataclasses.replace(work, collectives=known))


def _place(layer: Any, weights: Any, slot: Slot, name: str, number: int) -> Optional[Place]:
    owner, attribute = layer, name
    if slot.on:
        holder, at, attribute = (weights, name, _FORWARD) if slot.on == WEIGHTS else (layer, slot.on, name)
        owner = attribute_of(holder, at)
    return Place(owner, attribute, slot, number) if replaceable(owner, attribute) else None


def replaceable(owner: Any, name: str) -> bool:
    """Tell whether ``owner.name`` can be replaced by a function that is called in the same way.

    On an instance anything callable can be replaced, unless its class defines what an assignment does. On a class only a Python
    function can be replaced, because anything else binds to instances differently. On ``None`` nothing can be replaced.
    """
    if isinstance(owner, type):
        return isinstance(inspect.getattr_static(owner, name, None), FunctionType)
    if not isinstance(owner, ModuleType):
        of_class = inspect.getattr_static(type(owner), name, None)  # a property, or a member of __slots__
        setting = inspect.getattr_static(type(owner), "__setattr__")
        if hasattr(type(of_class), "__set__") or isinstance(setting, FunctionType):
            return False
    return attribute_of(owner, "__dict__") is not None and callable(attribute_of(owner, name))


def attribute_of(owner: Any, name: str) -> Any:
    """Return the attribute, or None if it is missing or if reading it raises."""
    try:
        return getattr(owner, name, None)
    except Exception:  # noqa: BLE001 - an attribute that cannot be read cannot be wrapped
        return None
