"""Cells as a model process writes them, made by hand."""

from __future__ import annotations

import numpy as np

from lightllm_otel.ring import layout
from lightllm_otel.vocabulary import IdleReason, Mode, Operator, Phase


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


def cells(*steps):
    """One array of cells, shape (n, 16)."""
    whole = b"".join(step + intervals.tobytes() for step, intervals in steps)
    return np.frombuffer(whole, np.uint8).reshape(-1, layout.CELL_BYTES)


FACTS = {
    "model": "llama-7b", "gpu_name": "NVIDIA H200", "gpu_uuid": "GPU-1", "tp": 1, "dp": 1, "dp_rank": 0, "rank": 0,
    "level": "operators", "sample_every": 64, "clock": "cuda_event", "lightllm": "0.0.1", "plugin": "0.1.0",
    "dtype": "float16",
    "config": {"hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32, "intermediate_size": 11008,
               "vocab_size": 32000},
    "slots": {operator.value: "installed" for operator in Operator},
}  # fmt: skip
