"""Which rank came last to each all_reduce, by a witness that is not the plugin: CUPTI.

The kernel of the last one waits for nobody, so it runs shortest. Kernels are compared, as the plugin compares times, by how long
they ran and never by the clocks of different GPUs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from kernels import Kernel, kernels_in, read_trace
from profiler import profiled

from lightllm_otel.records.vocabulary import Operator
from lightllm_otel.reduce.collectives import has_transfer, last_arrival, last_rank_known, transfer_and_wait
from lightllm_otel.reduce.matching import Matched

NAMES = ("AllReduce", "cross_device_reduce")  # in the names of NCCL's kernels, and of LightLLM's own


@contextlib.contextmanager
def watching(trace: Path, seconds: list[float]) -> Iterator[None]:
    """Adds to ``seconds`` what each kernel of an all_reduce took, in the order in which they ran. ``trace`` is not kept."""
    with profiled(trace):
        yield
    seconds += durations(kernels_in(read_trace(trace)))
    trace.unlink()


def durations(kernels: Sequence[Kernel]) -> list[float]:
    return [1e-9 * (each.end - each.start) for each in kernels if any(name in each.name for name in NAMES)]


def judged(
    steps: Sequence[tuple[int, Matched, np.ndarray]], seen: Sequence[Sequence[float]], many: int, noise: float
) -> dict[str, Any]:
    """Beside what the plugin says of each step who was last, what CUPTI says; or a ``problem``.

    ``steps``: number in the pass, its collectives, and which of its calls count; ``seen``: of each rank the seconds of all
    kernels of a pass of ``many`` steps. CUPTI names by all calls that count, the plugin by those that it is sure of. A call is
    judged where the plugin names a rank.
    """
    found: dict[str, list[Any]] = {"seen_last": [], "named_last": [], "seen_wait_us": [], "named_wait_us": []}
    transfers, right, judged_calls = [], 0, 0
    for number, matched, counted in steps:
        reduces = matched.calls["operator"] == Operator.ALL_REDUCE.code
        if any(len(each) != many * reduces.sum() for each in seen):
            return {
                "problem": f"CUPTI saw {[len(each) for each in seen]} all_reduce in {many} steps of {reduces.sum()}"
            }
        kernels = np.array(seen).reshape(len(seen), many, -1)[:, number][:, counted[reduces]]
        layers = matched.only(counted)
        transfer, waited = transfer_and_wait(kernels)
        known, moved = last_rank_known(layers), has_transfer(layers)
        own = transfer_and_wait(layers.seconds, layers.min_seconds)[1][:, known]
        if moved.any():
            transfers.append(float(transfer[moved].mean()))
        named = last_arrival(own, noise)
        judged_calls += int((named >= 0).sum())
        right += int(((named >= 0) & (named == waited[:, known].argmin(axis=0))).sum())
        for who, waits in (("seen", waited), ("named", own)):
            mean = waits.mean(axis=1, keepdims=True) if waits.shape[1] else np.zeros((len(seen), 1))
            found[f"{who}_last"].append(int(last_arrival(mean, noise)[0]))
            found[f"{who}_wait_us"].append(np.round(1e6 * mean[:, 0], 3).tolist())
    return {
        **found, "right_steps": sum(a == b for a, b in zip(found["seen_last"], found["named_last"])),
        "right_calls": right, "judged_calls": judged_calls,
        "kernel_us": round(1e6 * float(np.median(transfers)), 3) if transfers else None,
    }  # fmt: skip
