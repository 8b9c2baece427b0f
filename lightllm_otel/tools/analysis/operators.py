"""Operators of a phase: share, time per step, layer and call, and the rates that the hardware reached in them."""

from __future__ import annotations

import dataclasses

import numpy as np

from lightllm_otel.records.vocabulary import COLLECTIVES, Mode, Operator, Phase
from lightllm_otel.roofline import ideal, links
from lightllm_otel.roofline.work import OperatorWork
from lightllm_otel.tools.analysis import expected, resampling
from lightllm_otel.tools.analysis.expected import Deployment
from lightllm_otel.tools.analysis.runs import Repeat, Run

HOST = "host"
# Of an operator's time in intervals at whose start the GPU waited. How long it waited is known only to be no longer than the
# host took to launch, so an operator that reaches half of what the hardware allows is not blamed on the host.
_MOSTLY, _BUSY = 0.5, 0.5


@dataclasses.dataclass(frozen=True)
class Spent:
    """One operator in one phase and mode, per rank. ``interval``: 95 %, of the share.

    ``layers``: in how many it occurs; 0 for those outside. Rates are of the time that it took, None where the model or the
    GPU is not known; ``busy``: what of the peak of its bound was reached.
    """

    operator: str
    share: float
    interval: tuple[float, float]
    seconds_per_step: float
    seconds_per_call: float
    calls_per_step: float
    layers: int
    starved: float
    flops_per_second: float | None = None
    bytes_per_second: float | None = None
    bus_bytes_per_second: float | None = None
    flops_per_byte: float | None = None
    ideal_seconds: float | None = None
    bound: str | None = None
    busy: float | None = None

    @property
    def seconds_per_layer(self) -> float | None:
        return self.seconds_per_step / self.layers if self.layers else None


def spent(run: Run, phase: Phase, mode: Mode, on: Deployment) -> list[Spent]:
    """Return the operators of a phase and mode, the longest first; empty if no step of this kind was sampled."""
    of_steps = [steps for steps in (per_step(repeat, phase, mode) for repeat in run.repeats) if len(steps)]
    if not of_steps:
        return []
    sums = run.operators.of(phase, mode)
    loads = _loads(run, phase, mode, on)
    whole, count = sums.seconds.sum(), sum(map(len, of_steps))
    if whole <= 0:
        return []
    low, high = resampling.shares(of_steps)
    found = []
    for operator in Operator:
        code = operator.code
        if not sums.calls[code]:
            continue
        seconds = float(sums.seconds[code])
        basic = Spent(
            operator.value, seconds / whole, (float(low[code]), float(high[code])), seconds / count,
            seconds / float(sums.calls[code]), float(sums.calls[code]) / count, int(sums.layers[code]),
            float(sums.starved[code]) / seconds if seconds > 0 else 0.0,
        )  # fmt: skip
        found.append(_rated(basic, operator, seconds, float(sums.payload[code]), loads.get(operator), on))
    return sorted(found, key=lambda row: -row.share)


def per_step(repeat: Repeat, phase: Phase, mode: Mode) -> np.ndarray:
    """Return the seconds of every operator in each sampled step of this kind, shape (steps, operators)."""
    chosen = repeat.chosen(phase, mode, sampled=True)
    place = np.where(chosen, np.cumsum(chosen) - 1, -1)
    of = place[repeat.of]
    kept, width = of >= 0, len(Operator)
    cells = of[kept] * width + repeat.intervals["operator"][kept]
    count = int(chosen.sum())
    sums = np.bincount(cells, repeat.intervals["seconds"][kept].astype(float), count * width)
    return sums.reshape(count, width)


def _loads(run: Run, phase: Phase, mode: Mode, on: Deployment) -> dict[Operator, expected.RequiredWork]:
    """Return the work of all ranks together in the sampled steps."""
    total: dict[Operator, expected.RequiredWork] = {}
    for repeat in run.repeats:
        steps = repeat.steps[repeat.chosen(phase, mode, sampled=True)]
        for operator, load in expected.load(steps, phase, on).items():
            sums = total.setdefault(operator, expected.RequiredWork())
            sums.flops += load.flops
            sums.memory_bytes += load.memory_bytes
    return total


def _rated(
    row: Spent, operator: Operator, seconds: float, payload: float, load: expected.RequiredWork | None, on: Deployment
) -> Spent:
    """Return the row with its rates and its bound."""
    host = HOST if operator is Operator.GAP or row.starved > _MOSTLY else None
    if seconds <= 0:
        return dataclasses.replace(row, bound=host)
    if operator in COLLECTIVES:
        rate = links.traffic(operator.value, payload, on.ranks) / seconds if payload else None
        busy = rate / on.link.one_way if rate is not None and on.link is not None else None
        return dataclasses.replace(row, bus_bytes_per_second=rate, bound=host or ideal.LINK, busy=busy)
    if load is None or not (load.flops or load.memory_bytes):
        return dataclasses.replace(row, bound=host)
    flops, moved = load.flops / seconds, load.memory_bytes / seconds
    rated = dataclasses.replace(
        row, flops_per_second=flops, bytes_per_second=moved, bound=host,
        flops_per_byte=flops / moved if moved else None,
    )  # fmt: skip
    if on.gpu is None:
        return rated
    least = ideal.operator(operator, OperatorWork(load.flops, load.memory_bytes), on.gpu, None, on.ranks)
    share = row.seconds_per_step / seconds
    busy = least.seconds / seconds
    bound = least.bound if busy > _BUSY else host or least.bound
    return dataclasses.replace(rated, ideal_seconds=least.seconds * share, bound=bound, busy=busy)


@dataclasses.dataclass(frozen=True)
class Utilisation:
    """Utilisation of a GPU: FLOPs and bytes that the model needs, divided by those that the GPU could have done meanwhile."""

    mfu: float | None
    mbu: float | None


def utilisation(run: Run, phase: Phase, mode: Mode, on: Deployment) -> Utilisation:
    """Return the utilisation over all steps of this kind, sampled or not. Gaps within steps count, time between them does not."""
    if on.shape is None or on.gpu is None:
        return Utilisation(None, None)
    flops = moved = seconds = 0.0
    for repeat in run.repeats:
        steps = repeat.steps[repeat.chosen(phase, mode)]
        loads = expected.load(steps, phase, on).values()
        flops += sum(load.flops for load in loads)
        moved += sum(load.memory_bytes for load in loads)
        seconds += float(steps["seconds"].sum())
    return Utilisation(flops / on.gpu.flops / seconds, moved / on.gpu.memory_bytes_per_second / seconds)
