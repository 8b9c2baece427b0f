"""One version of LightLLM as the rules of absence look at it: its layers and steps as graphs, made once."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple, Optional, Protocol

from lightllm_otel.worker.host.slots import ENTRIES
from lightllm_source.attribution import COLLECTIVE as AT_COLLECTIVE
from lightllm_source.attribution import END, LAYER, LAYERS, POST, PRE, Attribution, Point
from lightllm_source.calls import Flow, flow_of
from lightllm_source.forward import (
    BASE_MODEL,
    COLLECTIVE,
    SLOT,
    STATE,
    WORK,
    Forward,
    Graph,
    Item,
    Roles,
    boundaries,
    models,
)
from lightllm_source.slots import Slots
from lightllm_source.tree import Found, Tree

_GRAPH = "prefill graph"


class Assumed(Protocol):
    """The part of a contract that the rules ask for."""

    @property
    def hooked(self) -> Collection[str]: ...

    def attribution(self, tree: Tree, roles: Roles) -> Attribution: ...

    def leaves(self) -> Collection[str]: ...

    def reads(self, owner: str) -> Collection[str]: ...


class Way(NamedTuple):
    """A way into a layer of one variant."""

    variant: int
    entry: str
    graph: Graph


class Model:
    """The graphs of one model. ``ways``: into its layers; ``steps``: the functions that run them, by the entry that they call."""

    def __init__(self, tree: Tree, roles: Roles, attribution: Attribution, leaves: Collection[str]) -> None:
        self.roles = roles
        self.leaves = leaves
        self.attribution = attribution
        self.layer: str = roles.layer.what.name  # type: ignore[union-attr]
        self.ways = [
            Way(number, entry, graph)
            for number, variant in enumerate(attribution.variants)
            for entry in ENTRIES
            if (graph := Forward(tree, roles.layer, variant.slots, variant.flags).graph(entry)) is not None
            and any(item and item.kind == SLOT for item in graph.items)
        ]
        base = tree.find(*BASE_MODEL)
        steps = [
            (name.removeprefix("_"), _step(tree, base, self, name)) for name in ("_context_forward", "_token_forward")
        ]
        self.steps = {entry: graph for entry, graph in steps if graph is not None}

    @property
    def key(self) -> tuple[str, int]:
        return self.roles.layer.module, id(self.roles.layer.what)

    def points(self, way: Optional[Way], entry: str, items: Collection[Optional[Item]], back: bool) -> Iterator[Point]:
        """Yield where the plugin is reached at these items. ``way``: the layer that they are in, None for a step. ``back``: they
        lie before.
        """
        for item in items:
            if item is None and way is None:
                yield Point(END, "")
            elif item is None:
                yield from self.edges(entry, back, 0 if back else 2)
            elif item.kind == COLLECTIVE:
                yield Point(AT_COLLECTIVE, item.name.rpartition(".")[2])
            elif item.role == LAYERS:
                yield from self.edges(entry, back, 1 if back else 0)
            elif item.role != _GRAPH:
                yield Point(item.role or LAYER, item.name, way.variant if way is not None else 0)

    def edges(self, entry: str, last: bool, number: int) -> Iterator[Point]:
        """Yield the first, or the last, points of each variant of layer ``number``."""
        for way in self.ways:
            if way.entry == entry:
                items = boundaries(way.graph, way.graph.end if last else way.graph.begin, last) - {None}
                yield from (point._replace(number=number) for point in self.points(way, entry, items, last))


class Scan:
    """One version of LightLLM and what is assumed of it. Graphs are made once."""

    def __init__(self, tree: Tree, assumed: Assumed) -> None:
        self.tree = tree
        self.assumed = assumed
        self.models = [Model(tree, roles, assumed.attribution(tree, roles), assumed.leaves()) for roles in models(tree)]
        each: dict[tuple[str, int], Model] = {}
        for model in self.models:
            each.setdefault(model.key, model)
        self.layers = list(each.values())
        """A model for each class of layers."""


def _step(tree: Tree, base: Optional[Found], model: Model, name: str) -> Graph | None:
    """Return a model's forward where its layers are one item, and what pre and post layers do beside their slots is there."""
    member = tree.member(base, name) if base is not None else None
    if member is None or isinstance(member.what, list):
        return None
    flow = flow_of(member.what)
    graph = Graph()
    begins = [graph.node() for _ in flow.calls]
    for number, call in enumerate(flow.calls):
        end = _stage(tree, model, graph, begins[number], call, f"{BASE_MODEL[1]}.{name}")
        graph.follows[end] |= {begins[after] for after in flow.follows[number]}
    graph.end = begins[Flow.END]
    return graph


def _stage(tree: Tree, model: Model, graph: Graph, at: int, call: str, where: str) -> int:
    before, _, last = call.rpartition(".")
    role = {"self.pre_infer": PRE, "self.post_infer": POST}.get(before, "")
    owner = {PRE: model.roles.pre, POST: model.roles.post}.get(role)
    slots = model.attribution.ends.get(role, Slots({}))
    if owner is not None and last in slots.operators:
        return graph.node(Item(SLOT, last, "", where, role, last in slots.passing), at)
    if owner is not None or before == "infer_state":
        target = owner or tree.find(*STATE)
        inner = Forward(tree, target, Slots({})).graph(last) if target is not None else None
        return _inserted(graph, inner, at) if inner is not None else at
    if last in ENTRIES:
        return graph.node(Item(SLOT, last, "", where, LAYERS), at)
    if not call:
        return at
    if before.endswith("prefill_graph"):  # instead of the layers; such a step has no operators
        return graph.node(Item(SLOT, last, "", where, _GRAPH), at) if last in ("replay", "capture_prefill") else at
    return graph.node(Item(COLLECTIVE if last in model.leaves else WORK, call, "", where), at)


def _inserted(graph: Graph, inner: Graph, at: int) -> int:
    base = len(graph.items)
    for item in inner.items:
        graph.node(item)
    end = graph.node()
    for number, follows in enumerate(inner.follows):
        graph.follows[base + number] = {base + each for each in follows}
    graph.follows[base + inner.end].add(end)
    graph.follows[at].add(base)
    return end
