"""A layer's forward as the plugin meets it: which calls are slots, collectives or other work, and what follows what."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple, Optional

from lightllm_source.calls import Flow, flow_of
from lightllm_source.slots import Slots
from lightllm_source.syntax import FUNCTIONS, Class, dotted
from lightllm_source.tree import Found, Member, Tree

BASE_MODEL = ("lightllm.common.basemodel.basemodel", "TpPartBaseModel")
STATE = ("lightllm.common.basemodel.infer_struct", "InferStateInfo")
_MODEL_FILE = re.compile(r"(lightllm/models/[^/]+/model\w*)\.py")
_DEEPEST = 24  # methods that call methods
SLOT, COLLECTIVE, WORK = "slot", "collective", "work"
COLLECTIVE_NAMES = re.compile(
    r"(all_reduce|all_gather(_into_tensor|_object)?|reduce_scatter(_tensor)?|all_to_all\w*|_all_to_all\w*|broadcast|reduce)$"
)


class Item(NamedTuple):
    """``kind``: SLOT (``name``: the function), COLLECTIVE or WORK (``name``: what is called). ``inside``: the slot around it.
    ``where``: the method that calls it, by the class that defines it. ``role``: whose slot it is, where it is not a layer's.
    ``passing``: it may launch nothing, and then ends no interval.
    """

    kind: str
    name: str
    inside: str = ""
    where: str = ""
    role: str = ""
    passing: bool = False


class Graph:
    """Items, and which may follow which; a node without an item is None. ``end``: the node at which the forward is over.

    What runs inside a slot stands in the graph, but is not on its way.
    """

    def __init__(self) -> None:
        self.items: list[Optional[Item]] = []
        self.follows: list[set[int]] = []
        self.begin = 0
        self.end = -1

    def node(self, item: Optional[Item] = None, before: Optional[int] = None) -> int:
        self.items.append(item)
        self.follows.append(set())
        if before is not None:
            self.follows[before].add(len(self.items) - 1)
        return len(self.items) - 1

    @functools.cached_property
    def leads(self) -> list[set[int]]:
        """For each node those that it may follow, once the graph is complete."""
        before: list[set[int]] = [set() for _ in self.items]
        for number, after in enumerate(self.follows):
            for each in after:
                before[each].add(number)
        return before


class Roles(NamedTuple):
    """The classes of one model's layers, and of the weights that a layer is given."""

    model: str
    pre: Optional[Found]
    layer: Found
    post: Optional[Found]
    weights: Optional[Found] = None


def models(tree: Tree) -> Iterator[Roles]:
    """Yield the models of a version, each set of classes once. Draft models are left out: their steps are not timed."""
    seen = set()
    for path in sorted(tree.paths):
        match = _MODEL_FILE.fullmatch(path)
        module = match[1].replace("/", ".") if match else ""
        content = tree.module(module) if module and "mtp" not in module else None
        for name in content.classes if content is not None else ():
            found = tree.find(module, name)
            if found is None or not any(each.what.name == BASE_MODEL[1] for each in tree.mro(found)):  # type: ignore[union-attr]
                continue
            pre, layer, post, weights = (
                _role(tree, found, f"{role}_class")
                for role in ("pre_layer_infer", "transformer_layer_infer", "post_layer_infer", "transformer_weight")
            )
            key = tuple(each and (each.module, id(each.what)) for each in (pre, layer, post))
            if layer is not None and key not in seen:
                seen.add(key)
                yield Roles(name, pre, layer, post, weights)


def _role(tree: Tree, model: Found, attribute: str) -> Optional[Found]:
    member = tree.member(model, attribute)
    if member is None or not isinstance(member.what, list):
        return None
    found = tree.find(member.owner.module, dotted(member.what[0]))
    return found if found is not None and isinstance(found.what, Class) else None


class Forward:
    """Inlines the methods of one class into one graph. ``slots``: functions that the plugin wraps for an instance. ``flags``: its
    attributes that are true or false.
    """

    def __init__(
        self, tree: Tree, owner: Found, slots: Slots, flags: Mapping[str, bool] = MappingProxyType({})
    ) -> None:
        self._tree = tree
        self._class = owner
        self._slots = slots
        self._flags = flags
        self.asked: set[str] = set()
        """Attributes on which depends what runs outside of the slots."""

    def method(self, name: str) -> Optional[Member]:
        """Return a method of the class that is there to be called: not one that only raises."""
        member = self._tree.member(self._class, name)
        if member is None or isinstance(member.what, list) or not reaches_end(flow_of(member.what)):
            return None
        return member

    def graph(self, name: str) -> Optional[Graph]:
        """Return what runs when the instance's method is called; None where the class does not have it."""
        member = self.method(name)
        if member is None:
            return None
        graph = Graph()
        graph.end = self._inline(graph, graph.node(), member, "", 0)
        return graph

    def _inline(self, graph: Graph, at: int, member: Member, inside: str, deep: int) -> int:
        """Add the method behind the node ``at``. Returns the node behind it."""
        assert not isinstance(member.what, list)
        flow = flow_of(member.what)
        begins = [graph.node() for _ in flow.calls]
        graph.follows[at].add(begins[Flow.BEGIN])
        comes = self._comes(flow)
        if not inside:
            self.asked |= {attribute for number, (attribute, _) in flow.needs.items() if number in comes}
        for number in sorted(comes):
            call = flow.calls[number]
            end = self._call(graph, begins[number], call, member, inside, deep) if call else begins[number]
            graph.follows[end] |= {begins[after] for after in flow.follows[number] & comes}
        return begins[Flow.END]

    def _comes(self, flow: Flow) -> set[int]:
        """Return the nodes of a function that the instance's attributes let it come to."""
        comes, left = {Flow.BEGIN}, [Flow.BEGIN]
        while left:
            for after in flow.follows[left.pop()] - comes:
                attribute, value = flow.needs.get(after, ("", True))
                if self._flags.get(attribute, value) == value:
                    comes.add(after)
                    left.append(after)
        return comes

    def _call(self, graph: Graph, at: int, call: str, caller: Member, inside: str, deep: int) -> int:
        last = call.rpartition(".")[2]
        owner = caller.owner
        where = f"{owner.what.name}.{caller.what.name}"  # type: ignore[union-attr]
        slot = self._slots.of_call(call)
        if slot and (not inside or call.removeprefix("self.") in self._slots.inner):
            end = graph.node(Item(SLOT, slot, inside, where, passing=slot in self._slots.passing), at)
            for target in self._targets(call, owner):
                if deep < _DEEPEST:
                    self._inline(graph, graph.node(), target, inside or slot, deep + 1)
            return end
        targets = self._targets(call, owner) if deep < _DEEPEST else []
        if targets:
            end = graph.node()
            for target in targets:
                graph.follows[self._inline(graph, at, target, inside, deep + 1)].add(end)
            return end
        return graph.node(Item(COLLECTIVE if COLLECTIVE_NAMES.fullmatch(last) else WORK, call, inside, where), at)

    def _targets(self, call: str, owner: Found, through: tuple[str, ...] = ()) -> list[Member]:
        """Return the methods that a call may run: of the instance, of ``super()``, or of a class by its name.

        ``through``: the attributes that led here, one assigned to the other.
        """
        before, _, last = call.rpartition(".")
        if before == "self":
            member = self._tree.member(self._class, last, instance=last not in through)
            if member is not None and isinstance(member.what, list):
                values = [
                    target for value in member.what for target in self._value(value, member.owner, (*through, last))
                ]
                return values or self._methods(self._tree.member(self._class, last))
            return self._methods(member)
        if before == "super()":
            chain = self._tree.mro(self._class)
            behind = chain[chain.index(owner) + 1 :] if owner in chain else []
            return self._methods(self._tree.member(behind[0], last) if behind else None)
        if before == "infer_state" and COLLECTIVE_NAMES.fullmatch(last):
            found = self._tree.find(*STATE)
        else:
            found = self._tree.find(owner.module, before) if before and "()" not in before else None
        return self._methods(self._tree.member(found, last)) if found and isinstance(found.what, Class) else []

    def _value(self, value: ast.expr, owner: Found, through: tuple[str, ...]) -> list[Member]:
        """Return what is behind ``partial(f, self)``, ``self.f``, ``Class.f`` or one of two of these."""
        if isinstance(value, ast.IfExp):
            return [*self._value(value.body, owner, through), *self._value(value.orelse, owner, through)]
        if isinstance(value, ast.Call):
            partial = dotted(value.func).endswith("partial") and value.args
            return self._value(value.args[0], owner, through) if partial else []
        name = dotted(value)
        return self._targets(name, owner, through) if name.count(".") == 1 else []

    @staticmethod
    def _methods(member: Optional[Member]) -> list[Member]:
        return [member] if member is not None and isinstance(member.what, FUNCTIONS) else []


def reaches_end(flow: Flow) -> bool:
    """Tell whether a function can return."""
    seen, left = {Flow.BEGIN}, [Flow.BEGIN]
    while left:
        for after in flow.follows[left.pop()] - seen:
            seen.add(after)
            left.append(after)
    return Flow.END in seen


def boundaries(graph: Graph, at: int, back: bool = False) -> set[Optional[Item]]:
    """Return the slots and collectives at which the interval that holds node ``at`` can end; None: the end of the forward.

    ``back``: those at which it can begin; None: the begin of the forward.
    """
    found: set[Optional[Item]] = set()
    links, last = (graph.leads, graph.begin) if back else (graph.follows, graph.end)
    seen, left = {at}, [at]
    while left:
        now = left.pop()
        if now == last:
            found.add(None)
        for after in links[now] - seen:
            seen.add(after)
            item = graph.items[after]
            ends = item is not None and not item.inside and item.kind in (SLOT, COLLECTIVE)
            if ends:
                found.add(item)
            if item is None or not ends or item.passing:
                left.append(after)
    return found
