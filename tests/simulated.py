"""Simulated runs: many steps with a known time for every operator, as a recording or as tables."""

from __future__ import annotations

import numpy as np
import records

from lightllm_otel.records import layout
from lightllm_otel.records.batch import RecordBatch
from lightllm_otel.records.recording import RecordingWriter
from lightllm_otel.records.vocabulary import Mode, Operator, Phase, Site
from lightllm_otel.tools.analysis.runs import Repeat

LAYER = {
    Operator.ATTN_NORM: 3e-6, Operator.QKV_PROJ: 40e-6, Operator.KV_WRITE: 3e-6, Operator.ATTENTION: 60e-6,
    Operator.O_PROJ: 15e-6, Operator.FFN_NORM: 3e-6, Operator.FFN: 80e-6, Operator.ALL_REDUCE: 20e-6,
}  # fmt: skip


def columns(
    generator, steps=100, layers=4, phase=Phase.DECODE, mode=Mode.GRAPH, batch=20, context=1024, slower=None, run_noise=0.01,
    step_noise=0.03, every=1, first=0,
):  # fmt: skip
    """``(steps, intervals)`` of one rank. All steps of a run share its noise, as those of a server share its clocks.

    ``slower``: operator → factor. One step in ``every`` is sampled. The context grows by one token a step.
    """
    per_layer = list(LAYER.items())
    sampled = np.arange(steps) % every == 0
    count = len(per_layer) * layers + 1
    intervals = np.zeros((int(sampled.sum()), count), layout.INTERVAL)
    run = {operator: 1 + run_noise * generator.standard_normal() for operator in Operator}
    for layer in range(layers):
        for place, (operator, seconds) in enumerate(per_layer):
            column = intervals[:, layer * len(per_layer) + place]
            noise = 1 + step_noise * generator.standard_normal(len(column))
            column["operator"], column["layer"] = operator.code, layer
            column["seconds"] = seconds * run[operator] * (slower or {}).get(operator, 1.0) * noise
            if operator is Operator.ALL_REDUCE:
                column["payload_bytes"], column["site"] = batch * 4096 * 2, Site.FFN.code
    last = intervals[:, -1]
    last["operator"], last["layer"], last["seconds"] = Operator.LM_HEAD.code, -1, 1e-4 * run[Operator.LM_HEAD]
    heads = np.zeros(steps, layout.STEP)
    heads["magic"], heads["phase"], heads["mode"] = layout.STEP_MAGIC, phase.code, mode.code
    heads["intervals"], heads["flags"] = np.where(sampled, count, 0), np.where(sampled, layout.SAMPLED, 0)
    new = context if phase is Phase.PREFILL else 1
    heads["batch"] = heads["requests"] = heads["padded"] = batch
    heads["tokens"], heads["number"] = batch * new, first + np.arange(steps)
    heads["context"] = batch * (context + (0 if phase is Phase.PREFILL else np.arange(steps)))
    mean = intervals["seconds"].sum(axis=1).mean() if len(intervals) else 1e-3
    heads["seconds"] = mean * 1.01 * (1 + step_noise / 10 * generator.standard_normal(steps))
    heads["seconds"][sampled] = intervals["seconds"].sum(axis=1) * 1.01
    heads["closure_seconds"] = heads["seconds"]
    heads["wall_time"] = 1.7e9 + np.cumsum(heads["seconds"] * 1.2)
    return heads, intervals


def repeat(generator, facts=None, **options):
    heads, intervals = columns(generator, **options)
    of = np.repeat(np.arange(len(heads)), heads["intervals"])
    batch = RecordBatch(heads, intervals.reshape(-1), of)
    return Repeat(None, {0: {**records.FACTS, **(facts or {})}}, {0: batch})


def cells(heads, intervals):
    """As they lie in a recording."""
    sampled = (heads["flags"] & layout.SAMPLED) > 0
    starts = np.concatenate([[0], np.cumsum(layout.STEP_CELLS + heads["intervals"].astype(int))])
    whole = np.zeros((starts[-1], layout.CELL_BYTES), np.uint8)
    places = (starts[:-1, None] + np.arange(layout.STEP_CELLS)).reshape(-1)
    whole[places] = heads.view(np.uint8).reshape(-1, layout.CELL_BYTES)
    rest = np.ones(len(whole), bool)
    rest[places] = False
    whole[rest] = intervals.reshape(-1).view(np.uint8).reshape(-1, layout.CELL_BYTES)
    assert intervals.shape[0] == sampled.sum()
    return whole


def write(folder, seed=0, repeats=1, ranks=1, facts=None, **options):
    """A recording, or a folder of as many repeats; prefill and decode. Returns its path."""
    generator = np.random.default_rng(seed)
    for number in range(repeats):
        own_folder = folder / f"repeat-{number + 1}" if repeats > 1 else folder
        writer = RecordingWriter(own_folder, "test", 1 << 30)
        own = {rank: {**records.FACTS, "rank": rank, "tp": ranks, **(facts or {})} for rank in range(ranks)}
        writer.describe(own)
        prompts = {**options, "steps": 4, "phase": Phase.PREFILL, "mode": Mode.EAGER, "every": 1}
        for rank in range(ranks):
            writer.append(rank, cells(*columns(generator, **prompts)))
            writer.append(rank, cells(*columns(generator, **{**options, "first": 4})))
        writer.close()
    return folder if repeats > 1 else writer.path
