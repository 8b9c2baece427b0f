"""Groups of ranks in which everything has happened that can be on ``/metrics``."""

from __future__ import annotations

import numpy as np
import records

from lightllm_otel.records import layout
from lightllm_otel.records.vocabulary import COLLECTIVES, IdleReason, Implementation, Mode, Operator, Phase, Site
from lightllm_otel.reduce.group import Group

COMBINATIONS = ((Phase.PREFILL, Mode.EAGER), (Phase.DECODE, Mode.EAGER), (Phase.DECODE, Mode.GRAPH))


# With LightLLM's tensor-parallel prefill of sequence parts (tpsp) there are the most: each site's, by two libraries.
CALLS = (
    (0, Site.EMBEDDING), (1, Site.ATTENTION), (2, Site.ATTENTION), (1, Site.FFN), (2, Site.FFN), (1, Site.LM_HEAD),
)  # fmt: skip


def all_calls(ranks, rank):
    """Each collective by each library, so often that its stability is known; the last rank comes last."""
    intervals = np.zeros(2 * 16 * len(CALLS), layout.INTERVAL)
    for at, (operator, site) in enumerate(CALLS * 32):
        intervals[at]["operator"], intervals[at]["site"] = COLLECTIVES[operator].code, site.code
        intervals[at]["implementation"] = (Implementation.NCCL, Implementation.CUSTOM)[at // len(CALLS) % 2].code
    intervals["seconds"], intervals["payload_bytes"] = 1e-4 if rank == ranks - 1 else 2e-4, 1 << 20
    return intervals


def full_group(ranks=8, nodes=1):
    """Everything that can occur, on every rank. With ``nodes`` > 1 of that many hosts, this is one."""
    group = Group()
    for rank in range(ranks):
        group.set_facts(rank, {**records.FACTS, "tp": ranks * nodes, "nodes": nodes, "gpu_uuid": f"GPU-{rank}"})
    calls = [(operator, 1e-4, layout.STARVED) for operator in Operator]
    graph_layout = records.step(Phase.DECODE, Mode.GRAPH, 0.011, calls)
    plain = records.step(Phase.DECODE, Mode.GRAPH, 0.010)
    for rank in range(ranks):  # before the first sample
        group.add(rank, records.batch(*(records.step(phase, mode, 0.02) for phase, mode in COMBINATIONS[:2])))
    for rank in range(ranks):
        group.add(rank, records.batch(plain, graph_layout, plain))
        steps = [
            records.step(phase, mode, 0.01, calls, idle_reason=reason, idle_seconds=0.1)
            for phase, mode in COMBINATIONS
            for reason in (IdleReason.HOST, IdleReason.NO_REQUESTS)
        ]
        group.add(rank, records.batch(*steps))
        matched = [
            records.with_collectives(number, all_calls(ranks, rank), phase, mode)
            for number, (phase, mode) in enumerate((COMBINATIONS[0], COMBINATIONS[2]), start=1)
        ]
        group.add(rank, records.batch(*matched))
        header = np.zeros(1, layout.HEADER)[0]
        header["timestamp_quantum"], header["timestamp_cost"] = 32e-9, 0.3e-6
        group.ranks[rank].header = header
    group.settle()
    for operator in set(Operator) - {Operator.GAP}:
        for phase in (Phase.PREFILL, Phase.DECODE):
            key = (operator.code, phase.code)
            group.expectation.compared[key], group.expectation.expected[key] = 1.05, 1.0
    return group
