"""Efficiency of a GPU in runs: ideal time divided by measured time, and notes on runs that cannot give it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping

from lightllm_otel.records.vocabulary import Mode, Phase
from lightllm_otel.roofline import ideal
from lightllm_otel.roofline.shape import ModelShape
from lightllm_otel.tools.analysis.expected import batch as batch_of
from lightllm_otel.tools.analysis.expected import machine as machine_of
from lightllm_otel.tools.analysis.expected import unlike
from lightllm_otel.tools.analysis.pace import pace
from lightllm_otel.tools.analysis.runs import Run

Known = Mapping[tuple[str, Phase], "Measured"]


@dataclasses.dataclass(frozen=True)
class Measured:
    """Measured efficiency. ``efficiency``: ideal time divided by measured time of a step, at most 1; gaps within steps are part
    of it. ``range``: the same for the ends of the mean step's interval (95 %).
    """

    efficiency: float
    range: tuple[float, float]
    mode: Mode
    run: str


def efficiencies(runs: Iterable[Run], shape: ModelShape) -> Known:
    """Return the best of all runs, by GPU and phase."""
    found: dict[tuple[str, Phase], Measured] = {}
    for run in runs:
        on = machine_of(run.facts)
        own = on.shape or shape
        if on.gpu is None or (on.shape is None and unlike(run.facts, shape)):
            continue
        for phase, mode in run.kinds():
            seen = pace(run, phase, mode)
            size = batch_of(phase, seen.batch, seen.tokens, seen.context * seen.batch)
            least = sum(each.seconds for each in ideal.step(own, size, on.gpu, on.ranks, on.link, on.element).values())
            shortest, longest = seen.interval
            low, efficiency, high = (min(least / seconds, 1.0) for seconds in (longest, seen.mean, shortest))
            key = (on.gpu.name, phase)
            if key not in found or efficiency > found[key].efficiency:
                found[key] = Measured(efficiency, (low, high), mode, run.name)
    return found


def useless(runs: Iterable[Run], asked: Collection[str], shape: ModelShape) -> Iterator[str]:
    """Return a sentence on each run whose GPU is none of those asked for, or whose model cannot be told."""
    for run in runs:
        on = machine_of(run.facts)
        gpu = on.gpu
        name = run.facts.get("gpu_name") or "an unknown GPU" if gpu is None else gpu.name
        if name not in asked:
            yield f"the run {run.name} says nothing here: it is of {name}, which is no --machine"
        elif on.shape is None and (why := unlike(run.facts, shape)):
            yield f"the run {run.name} says nothing here: {why}; it does not say its own shape"


def unfair(known: Known, assumed: Collection[str]) -> Iterator[str]:
    """``assumed``: GPUs whose decode is not measured. Steps without CUDA graphs wait for the host, what is assumed does not."""
    for (gpu, phase), measured in known.items():
        if phase is Phase.DECODE and measured.mode is Mode.EAGER and assumed:
            yield (
                f"decode on {gpu} was measured without CUDA graphs (the run {measured.run}), so it looks worse beside "
                f"{', '.join(sorted(assumed))}, where it is assumed; give a run with graphs, or one of each"
            )
