"""Finders of GPU work whose time is counted as an operator that it is not, in the layers and around them.

Each finder yields places, in words that stay the same while the place does. :mod:`rules` says what each of them means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from lightllm_otel.records.vocabulary import Operator
from lightllm_source.attribution import LAYERS, Point
from lightllm_source.forward import COLLECTIVE, SLOT, WORK, Graph, Item, boundaries
from lightllm_source.scan import Model, Scan

# Calls that launch nothing: views, shapes, memory, and the host's own bookkeeping.
LIGHT = re.compile(
    r"view|view_as|reshape|split|chunk|transpose|permute|unsqueeze|squeeze|expand|flatten|narrow|size|numel|detach|item|"
    r"alloc_tensor|empty|empty_like|cache_env_in|cache_env_out|get_env_start_args|get_att_input_params|clear_deepep_buffer|"
    r"can_run|need_capture|find_closest_graph_\w+|capture_prefill|replay|"  # prefill graphs have a rule of their own
    r"get_\w+|is_\w+|has_\w+|enable_\w+|prepare_\w+|deque|pop|popleft|appendleft|extend|index|keys|values|items|join|"
    r"super|range|len|int|bool|float|str|min|max|getattr|hasattr|isinstance|print|list|tuple|"
    r"enumerate|zip|append|copy|cpu|tolist|sum|all|any|synchronize|to_no_ref_tensor|vars|info|warning|debug|linspace|sqrt"
)
# Casts and copies that newer code makes as it goes, often of nothing: small, and not reported.
SMALL = re.compile(r"to|float|half|bfloat16|contiguous|type_as|zeros|zeros_like|zero_|fill_|copy_")
# Work that is an operator's by its name, wherever it stands.
RIGHT = (
    (re.compile(r"(.*\.)?add_"), Operator.RESIDUAL),
    (re.compile(r".*\.(prefill|decode)_att"), Operator.ATTENTION),
    (re.compile(r".*copy_kv.*"), Operator.KV_WRITE),
)
UNCLAIMED = (Operator.GAP.value, Operator.OTHER.value)
INDEXER = re.compile(r".*_get_indices")
# What an operator may not contain: another one's work. The sentence says what is so on purpose.
FOREIGN = (
    (Operator.ATTENTION, re.compile(r".*\.(mm|bmm)"), "the GEMMs of MLA"),
    (Operator.ATTENTION, INDEXER, ""),
    (Operator.FFN, re.compile(r".*norm\w*|rmsnorm_forward"), "the norms inside a feed-forward"),
    (Operator.FFN, re.compile(r".*\.(moe_gate\.mm|experts)"), "the router and the experts of a mixture of experts"),
)  # fmt: skip


def work_outside_slots(scan: Scan) -> Iterator[str]:
    """GPU work in a layer's forward that is counted as an operator that it is not."""
    for model in scan.layers:
        for way in model.ways:
            for number, item in works(way.graph):
                before = [*model.points(way, way.entry, boundaries(way.graph, number, True), True)]
                after = [*model.points(way, way.entry, boundaries(way.graph, number), False)]
                yield from _miscounted(model, item.name, item.where, before, after)


def work_between_layers(scan: Scan) -> Iterator[str]:
    """GPU work around the layers that is counted as an operator that it is not."""
    for model in scan.models:
        for entry, step in model.steps.items():
            for number, item in works(step):
                before = [*model.points(None, entry, boundaries(step, number, True), True)]
                after = [*model.points(None, entry, boundaries(step, number), False)]
                yield from _miscounted(model, item.name, item.where, before, after)
            yield from _behind_the_last_layer(model, entry, step)


def _behind_the_last_layer(model: Model, entry: str, step: Graph) -> Iterator[str]:
    """The work at the end of a layer where what follows is no layer any more."""
    layers = [(number, item) for number, item in enumerate(step.items) if item is not None and item.role == LAYERS]
    for way in model.ways:
        for number, item in works(way.graph) if way.entry == entry else ():
            if None in boundaries(way.graph, number):
                before = [*model.points(way, entry, boundaries(way.graph, number, True) - {None}, True)]
                for at, layer in layers:
                    after = [*model.points(None, entry, boundaries(step, at), False)]
                    yield from _miscounted(model, item.name, layer.where, before, after, "the last ")


def works(graph: Graph) -> Iterator[tuple[int, Item]]:
    """Yield the nodes and items of work in no operator that takes time on the GPU."""
    for number, item in enumerate(graph.items):
        if item is not None and not item.inside and item.kind == WORK and is_work(item.name):
            yield number, item


def _miscounted(
    model: Model, work: str, where: str, before: list[Point], after: list[Point], prefix: str = ""
) -> Iterator[str]:
    counted = {model.attribution.counted(begin, end) for begin in before for end in after}
    right = {operator.value for pattern, operator in RIGHT if pattern.fullmatch(work)}
    for operator in sorted(filter(None, counted - right - {*UNCLAIMED})):
        yield f"{where}: {prefix}{last_word(work) if prefix else work} as {operator}"


def is_work(call: str) -> bool:
    """Tell whether a call takes time on the GPU that is worth a name."""
    last = last_word(call)
    constructed = last[:1].isupper()
    return not (constructed or LIGHT.fullmatch(last) or SMALL.fullmatch(last))


def last_word(call: str) -> str:
    return call.rpartition(".")[2].removesuffix("()")


def collective_without_leaf(scan: Scan) -> Iterator[str]:
    """Collectives of a kind that is not hooked: they are counted as the operator around them, or before the next one."""
    ways = (way.graph for model in scan.layers for way in model.ways)
    for graph in (*ways, *(step for model in scan.models for step in model.steps.values())):
        for item in graph.items:
            if item is not None and item.kind == COLLECTIVE and last_word(item.name) not in scan.assumed.leaves():
                yield f"{item.where}: {item.name}"


def work_of_others(scan: Scan) -> Iterator[str]:
    """Work inside an operator that by its name belongs to another one."""
    for model in scan.layers:
        for way in model.ways:
            operators = model.attribution.variants[way.variant].slots.operators
            for item in way.graph.items:
                if item is not None and item.inside and item.kind == WORK:
                    for operator, pattern, _ in FOREIGN:
                        if operators[item.inside] is operator and pattern.fullmatch(item.name):
                            yield f"{item.where}: {item.name} as {operator.value}"


def operators_without_slot(scan: Scan) -> Iterator[str]:
    """Operators of a transformer's layers that no forward of a class has: a loss, not an error."""
    lacking = {model.layer: model.attribution.lacking(_progress(model)) for model in scan.layers if model.ways}
    for operator in dict.fromkeys(each for found in lacking.values() for each in found):
        names = [name for name, found in lacking.items() if operator in found]
        if len(names) == len(lacking):
            yield f"{operator.value}: every class"
        else:
            yield from (f"{operator.value}: {name}" for name in names)


def unclaimed_work(scan: Scan) -> Iterator[str]:
    """Calls in a layer's forward whose time is nobody's."""
    for model in scan.layers:
        yield from (f"{model.layer}: {call}" for call in model.attribution.unclaimed)


def layers_not_read(scan: Scan) -> Iterator[str]:
    """Layers whose code the plugin does not understand."""
    for model in scan.layers:
        yield from (f"{model.layer}: {why}" for why in model.attribution.unread)


def _progress(model: Model) -> set[Operator]:
    return {
        model.attribution.variants[way.variant].slots.operators[item.name]
        for way in model.ways
        for item in way.graph.items
        if item is not None and item.kind == SLOT
    }
