"""Rules of absence as a table: what each finder means, what in the plugin covers it, and what is so on purpose."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from lightllm_otel.records.vocabulary import Feature
from lightllm_source import absence, work
from lightllm_source.forward import BASE_MODEL
from lightllm_source.scan import Scan
from lightllm_source.tree import Tree
from lightllm_source.work import FOREIGN, INDEXER


class Rule(NamedTuple):
    """``covered``: rows of the table, or behaviours of the plugin, any of which covers what is found; the row must fit.
    ``kind``: what is wrong where nothing covers it. ``known``: a sentence where it is so on purpose, and documented; of the
    places that ``known_at`` matches.
    """

    name: str
    finds: Callable[[Scan], Iterator[str]]
    kind: str
    says: str
    covered: tuple[str, ...] = ()
    known: str = ""
    known_at: str = r".*"

    def is_known(self, place: str) -> bool:
        return bool(self.known) and re.fullmatch(self.known_at, place) is not None


MISCOUNTED, TOKENS, LOST, MIXED_UP = "misattribution", "wrong_tokens", "lost", "mixed_up"

RULES = (
    Rule("work_outside_slots", work.work_outside_slots, MISCOUNTED, "GPU work of a layer is counted as another operator"),
    Rule("work_between_layers", work.work_between_layers, MISCOUNTED,
         "GPU work around the layers is counted as another operator"),
    Rule("collective_without_leaf", work.collective_without_leaf, MISCOUNTED,
         "a collective is counted as the operator around it"),
    Rule("work_of_others", work.work_of_others, MISCOUNTED, "an operator contains another one's work",
         known="; ".join(f"{operator.value} contains {what}" for operator, _, what in FOREIGN if what),
         known_at=rf"(?!.*: {INDEXER.pattern} as ).*"),
    Rule("unclaimed_work", work.unclaimed_work, MISCOUNTED, "GPU work of a layer is counted as `other`",
         known="no operator of the table claims it"),
    Rule("layers_not_read", work.layers_not_read, LOST,
         "the code of a layer is not understood: what lies between its operators is `other`"),
    Rule("operators_without_slot", work.operators_without_slot, LOST, "an operator is not timed on its own"),
    Rule("forward_without_hook", absence.forward_without_hook, MISCOUNTED, "steps run that are not seen"),
    Rule("graph_without_hook", absence.graph_without_hook, MISCOUNTED,
         "steps replay a graph that looks like eager code, and most of their time looks like attention"),
    Rule("piece_of_graph", absence.piece_of_graph, MISCOUNTED,
         "the pieces of a prefill graph count as the operator between them", ("prefill_graph_replay",)),
    Rule("back_reference", absence.back_reference, TOKENS,
         "a graph that is captured from a shallow copy of the state lacks kernels, and later gives wrong tokens",
         ("rebinds_back_references",)),
    Rule("decode_without_tokens", absence.decode_without_tokens, LOST, "measuring ends at the first decode step", ("batch",)),
    Rule("port_unknown", absence.port_unknown, MIXED_UP, "the servers of a host share one group, and mix their measurements",
         ("server_port",)),
    Rule("port_changes", absence.port_changes, MIXED_UP, "a server has another name after each start", ("server_port",)),
    Rule("transport_not_told", absence.transport_not_told, MISCOUNTED, "collectives have a wrong implementation"),
    Rule("work_after_sample", absence.work_after_sample, MISCOUNTED, "GPU work after sampling counts as idle", ("end_of_step",)),
    Rule("mixed_batches", absence.mixed_batches, MISCOUNTED, "steps that also decode are called prefill", ("mixed",)),
)  # fmt: skip

# What in a version shows that it has what a feature is about. A feature without a row here is about every version.
THERE: dict[Feature, Callable[[Scan], bool]] = {
    Feature.DECODE_GRAPHS: lambda scan: any(absence.graph_classes(scan.tree)),
    Feature.GRAPH_MEMORY: lambda scan: any(absence.graph_classes(scan.tree)),
    Feature.PREFILL_GRAPHS: lambda scan: _has_option(scan, "--enable_prefill_cudagraph"),
    Feature.MICROBATCHES: lambda scan: _runs(scan, "microbatch_overlap_decode"),
    Feature.SPLITFUSE: lambda scan: _runs(scan, "splitfuse_forward"),
    Feature.MIXED_BATCHES: lambda scan: any(absence.mixed_batches(scan)),
    Feature.STEP_END: lambda scan: any(absence.work_after_sample(scan)),
    Feature.COLLECTIVES: lambda scan: bool(scan.tree.path("lightllm.distributed.communication_op")),
    Feature.HEALTH_MONITOR: lambda scan: _watches_processes(scan.tree),
}


def is_there(scan: Scan, feature: Feature) -> bool:
    """Tell whether a version of LightLLM has what a feature is about."""
    return feature not in THERE or THERE[feature](scan)


def _has_option(scan: Scan, option: str) -> bool:
    content = scan.tree.module("lightllm.server.api_cli")
    return content is not None and option in content.words


def _runs(scan: Scan, method: str) -> bool:
    base = scan.tree.find(*BASE_MODEL)
    return base is not None and scan.tree.has(base, method)


def _watches_processes(tree: Tree) -> bool:
    content = tree.module("lightllm.server.health_monitor.manager")
    return content is not None and any("pid" in name for name in content.functions)
