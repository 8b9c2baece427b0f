"""Cells as a model process writes them, made by hand."""

from __future__ import annotations

import numpy as np

from lightllm_otel.records import layout
from lightllm_otel.records.batch import RecordBatch
from lightllm_otel.records.vocabulary import COLLECTIVES, IdleReason, Implementation, Mode, Operator, Phase, Site


def step(phase=Phase.DECODE, mode=Mode.EAGER, seconds=1.0, operators=(), number=0, **fields):
    """``(step, intervals)`` as a ring is given them; ``operators``: (operator, seconds[, flags]) of each call."""
    record = np.zeros(1, layout.STEP)
    record["magic"], record["intervals"], record["number"] = layout.STEP_MAGIC, len(operators), number
    record["phase"], record["mode"], record["seconds"] = phase.code, mode.code, seconds
    record["flags"] = layout.SAMPLED if operators else 0
    record["padded"], record["batch"], record["requests"], record["tokens"] = 1, 1, 1, 1
    for name, value in fields.items():
        record[name] = value.code if isinstance(value, IdleReason) else value
    intervals = np.zeros(len(operators), layout.INTERVAL)
    for at, (operator, duration, *flags) in enumerate(operators):
        intervals[at]["operator"], intervals[at]["seconds"] = operator.code, duration
        intervals[at]["flags"] = flags[0] if flags else 0
    return record.tobytes(), intervals


def collectives(seconds, payload=1 << 20, how=Implementation.NCCL, embedding=None):
    """A decoder's all_reduces: ``seconds`` of the attention's and the ffn's in each layer, shape (layers, 2), and maybe
    the embedding's before them. As the intervals of a step.
    """
    calls = [] if embedding is None else [(Site.EMBEDDING, -1, 0, embedding)]
    calls += [(site, layer, occurrence, duration) for layer, pair in enumerate(seconds)
              for occurrence, (site, duration) in enumerate(zip((Site.ATTENTION, Site.FFN), pair))]  # fmt: skip
    intervals = np.zeros(len(calls), layout.INTERVAL)
    intervals["operator"], intervals["payload_bytes"] = COLLECTIVES[0].code, payload
    intervals["implementation"] = how.code
    for at, (site, layer, occurrence, duration) in enumerate(calls):
        intervals[at]["site"], intervals[at]["layer"] = site.code, layer
        intervals[at]["occurrence"], intervals[at]["seconds"] = occurrence, duration
    return intervals


def with_collectives(number, intervals, phase=Phase.DECODE, mode=Mode.GRAPH, **fields):
    """A sampled step that consists of these collectives, as a ring is given it."""
    record, _ = step(phase, mode, number=number, **{"seconds": 1.0, **fields})
    made = np.frombuffer(record, layout.STEP).copy()
    made["intervals"], made["flags"] = len(intervals), layout.SAMPLED
    return made.tobytes(), intervals


def cells(*steps):
    """One array of cells, shape (n, 16)."""
    whole = b"".join(step + intervals.tobytes() for step, intervals in steps)
    return np.frombuffer(whole, np.uint8).reshape(-1, layout.CELL_BYTES)


def batch(*steps):
    """The same as columns."""
    return RecordBatch.of_cells(cells(*steps))


FACTS = {
    "model": "llama-7b", "gpu_name": "NVIDIA H200", "gpu_uuid": "GPU-1", "tp": 1, "dp": 1, "dp_rank": 0, "rank": 0,
    "level": "operators", "sample_every": 64, "clock": "cuda_event", "lightllm": "0.0.1", "plugin": "0.1.0",
    "dtype": "float16",
    "config": {"hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32, "intermediate_size": 11008,
               "vocab_size": 32000},
    "slots": {operator.value: "installed" for operator in Operator},
    "contracts": {"rows": {}, "lost": {}},
}  # fmt: skip
