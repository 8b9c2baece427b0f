"""One version of LightLLM as the rules of absence look at it: its layers and steps as graphs, made once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Protocol

from lightllm_otel.vocabulary import Operator
from lightllm_source.attribution import Attribution
from lightllm_source.calls import Flow, flow_of
from lightllm_source.forward import BASE_MODEL, COLLECTIVE, SLOT, WORK, Forward, Graph, Item, Roles, models
from lightllm_source.tree import Found, Tree

ENTRIES = ("context_forward", "token_forward", "splitfuse_forward", "tpsp_context_forward", "tpsp_token_forward")
STATE = ("lightllm.common.basemodel.infer_struct", "InferStateInfo")


class Assumed(Protocol):
    """The part of a contract that the rules ask for."""

    attribution: Attribution
    hooked: Collection[str]

    def slots(self, role: str) -> Mapping[str, Operator]: ...

    def leaves(self) -> Collection[str]: ...

    def reads(self, owner: str) -> Collection[str]: ...


class Scan:
    """One version of LightLLM and what is assumed of it. Graphs are made once."""

    def __init__(self, tree: Tree, assumed: Assumed) -> None:
        self.tree = tree
        self.assumed = assumed
        self.models = list(models(tree))
        self.layers = list(self._layers())
        self.steps = list(self._steps())

    def _layers(self) -> Iterator[tuple[str, Graph]]:
        """Yield ``(class, graph)`` of every way into every layer class."""
        names = self.assumed.slots("layer")
        done = set()
        for roles in self.models:
            key = (roles.layer.module, id(roles.layer.what))
            if key not in done:
                done.add(key)
                forward = Forward(self.tree, roles.layer, names)
                for entry in ENTRIES:
                    graph = forward.graph(entry)
                    if graph is not None and any(item and item.kind == SLOT for item in graph.items):
                        yield roles.layer.what.name, graph  # type: ignore[union-attr]

    def _steps(self) -> Iterator[Graph]:
        """Yield the functions that run a model's layers, for each pre and post layer once; what these do is inlined."""
        base = self.tree.find(*BASE_MODEL)
        done = set()
        for roles in self.models if base is not None else ():
            key = tuple(each and (each.module, id(each.what)) for each in (roles.pre, roles.post))
            if key not in done:
                done.add(key)
                for name in ("_context_forward", "_token_forward"):
                    graph = _step(self, base, roles, name)
                    if graph is not None:
                        yield graph


def _step(scan: Scan, base: Found, roles: Roles, name: str) -> Graph | None:
    """Return a model's forward where its layers are one item, and what pre and post layers do beside their slots is there."""
    member = scan.tree.member(base, name)
    if member is None or isinstance(member.what, list):
        return None
    flow = flow_of(member.what)
    graph = Graph()
    begins = [graph.node() for _ in flow.calls]
    for number, call in enumerate(flow.calls):
        end = _stage(scan, graph, begins[number], call, roles, f"{BASE_MODEL[1]}.{name}")
        graph.follows[end] |= {begins[after] for after in flow.follows[number]}
    graph.end = begins[Flow.END]
    return graph


def _stage(scan: Scan, graph: Graph, at: int, call: str, roles: Roles, where: str) -> int:
    before, _, last = call.rpartition(".")
    owner = {"self.pre_infer": roles.pre, "self.post_infer": roles.post}.get(before)
    role = before.removeprefix("self.").removesuffix("_infer")
    if owner is not None and last in scan.assumed.slots(role):
        return graph.node(Item(SLOT, f"{role}.{last}"), at)
    if owner is not None or before == "infer_state":
        target = owner or scan.tree.find(*STATE)
        inner = Forward(scan.tree, target, ()).graph(last) if target is not None else None
        return _inserted(graph, inner, at) if inner is not None else at
    if last in ENTRIES:  # the layers: the last one ends with an add
        return graph.node(Item(WORK, "the last add_", "", where), graph.node(Item(SLOT, "layers"), at))
    if not call:
        return at
    if before.endswith("prefill_graph"):  # instead of the layers; such a step has no operators
        return graph.node(Item(SLOT, "prefill graph"), at) if last in ("replay", "capture_prefill") else at
    return graph.node(Item(COLLECTIVE if last in scan.assumed.leaves() else WORK, call, "", where), at)


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
