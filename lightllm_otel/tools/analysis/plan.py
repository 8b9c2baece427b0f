"""MachinePlan of machines for prefill and for decode: the cheapest that keeps the limits, by theory and measured efficiency.

Every time is the least time of :mod:`lightllm_otel.roofline.ideal` divided by an efficiency: a measured one where a run on that
GPU is given, with the interval of its mean step, else an assumed range. A plan is worked out at both ends of either as well,
which is its uncertainty.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable

from lightllm_otel.records.vocabulary import Operator, Phase
from lightllm_otel.roofline import ideal, links, memory
from lightllm_otel.roofline.gpus import Gpu
from lightllm_otel.roofline.shape import ModelShape
from lightllm_otel.roofline.work import Batch
from lightllm_otel.tools.analysis.efficiency import Measured, efficiencies, unfair, useless
from lightllm_otel.tools.analysis.runs import Run

USABLE = 0.85  # of a GPU's memory; the rest is activations, graphs, the allocator and the driver
ASSUMED = (0.4, 0.6, 0.8)  # of the least time; low, middle, high
MOST_REQUESTS = 4096


class NoPlan(ValueError):
    """No machine can do it within the limits; the message says which limit is in the way."""


@dataclasses.dataclass(frozen=True)
class MachineOffer:
    """``cards`` GPUs of a kind for ``price`` an hour, in whatever currency."""

    gpu: Gpu
    cards: int
    price: float


@dataclasses.dataclass(frozen=True)
class Demand:
    """Requests of so many tokens in and out. ``first_token_seconds`` and ``token_seconds``: limits; infinite for none.
    ``element``: bytes of a weight and of a cached value; ``network``: bytes per second between machines.
    """

    shape: ModelShape
    input_len: int
    output_len: int
    first_token_seconds: float
    token_seconds: float
    element: float
    network: float

    @property
    def transfer_bytes(self) -> float:
        """Return the bytes of a request's keys and values, which go from a prefill machine to a decode machine."""
        return memory.cache_bytes(self.shape, 1, self.element) * self.input_len

    @property
    def transfer_seconds(self) -> float:
        return self.transfer_bytes / self.network


@dataclasses.dataclass(frozen=True)
class Choice:
    """A machine, cut into groups of ``tp`` ranks, in one phase. ``rate``: its tokens a second, all groups together, of the
    prompt in prefill and new ones in decode; ``cost``: of a million of them; ``range``: of the cost, low and high.
    """

    gpu: str
    cards: int
    phase: str
    tp: int
    requests: int
    step_seconds: float
    rate: float
    cost: float
    range: tuple[float, float]
    bound: str
    limited_by: str
    efficiency: float
    measured: bool


@dataclasses.dataclass(frozen=True)
class MachinePlan:
    """``apart``: what a million output tokens cost with the cheapest of each phase; ``together``: on one kind alone.

    ``refusals``: machines that cannot do a phase, and why; ``notes``: on the runs that were given.
    """

    choices: tuple[Choice, ...]
    prefill: Choice
    decode: Choice
    apart: float
    together: dict[str, float]
    prefill_per_decode: float
    refusals: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def plan(machines: Iterable[MachineOffer], load: Demand, runs: Iterable[Run] = ()) -> MachinePlan:
    """Return the cheapest plan. Raises NoPlan."""
    machines, runs = list(machines), list(runs)
    known = efficiencies(runs, load.shape)
    choices, refusals = [], []
    for machine in machines:
        for phase in (Phase.PREFILL, Phase.DECODE):
            measured = known.get((machine.gpu.name, phase))
            best, why = _best(machine, load, phase, measured)
            choices += [best] if best is not None else []
            refusals += [f"{machine.cards} × {machine.gpu.name} in {phase}: {why}"] if best is None else []
    cheapest = {
        phase: min((each for each in choices if each.phase == phase.value), key=lambda each: each.cost, default=None)
        for phase in (Phase.PREFILL, Phase.DECODE)
    }
    prefill, decode = cheapest[Phase.PREFILL], cheapest[Phase.DECODE]
    if prefill is None or decode is None:
        raise NoPlan("no machine can do it: " + "; ".join(refusals))
    asked = {machine.gpu.name for machine in machines}
    assumed = {each.gpu for each in choices if each.phase == "decode" and not each.measured}
    fair = {key: measured for key, measured in known.items() if key[0] in asked}
    notes = (*useless(runs, asked, load.shape), *unfair(fair, assumed))
    ratio = load.input_len / load.output_len
    together = {}
    for first in choices:
        for second in choices:
            if (first.phase, second.phase) == ("prefill", "decode") and (first.gpu, first.cards) == (
                second.gpu,
                second.cards,
            ):
                together[f"{first.cards} × {first.gpu}"] = first.cost * ratio + second.cost
    return MachinePlan(
        tuple(choices), prefill, decode, prefill.cost * ratio + decode.cost, together,
        decode.rate * ratio / prefill.rate, tuple(refusals), notes,
    )  # fmt: skip


def _best(machine: MachineOffer, load: Demand, phase: Phase, measured: Measured | None) -> tuple[Choice | None, str]:
    """Return the cheapest way to divide the machine into groups, or None and the reason."""
    low, middle, high = ASSUMED
    if measured is not None:
        middle, (low, high) = measured.efficiency, measured.range
    options, whys = [], []
    for tp in _cuts(machine, load.shape):
        found, why = _cut(machine, load, phase, tp, middle, measured is not None)
        if found is None:
            whys.append(f"{why} (tp {tp})")
            continue
        ends = [_cut(machine, load, phase, tp, end, False)[0] for end in (high, low)]
        costs = [end.cost if end is not None else math.inf for end in ends]
        options.append(dataclasses.replace(found, range=(costs[0], costs[1])))
    if not options:
        return None, whys[-1] if whys else f"{load.shape.heads} heads cannot be shared among its cards"
    return min(options, key=lambda each: each.cost), ""


def _cuts(machine: MachineOffer, shape: ModelShape) -> list[int]:
    return [tp for tp in (1, 2, 4, 8, 16) if tp <= machine.cards and shape.heads % tp == 0]


def _cut(
    machine: MachineOffer, load: Demand, phase: Phase, tp: int, efficiency: float, measured: bool
) -> tuple[Choice | None, str]:
    room = USABLE * machine.gpu.memory_bytes - memory.weight_bytes(load.shape, tp, load.element)
    tokens = load.input_len + (load.output_len if phase is Phase.DECODE else 0)
    fitting = int(room / (memory.cache_bytes(load.shape, tp, load.element) * tokens)) if room > 0 else 0
    if fitting < 1:
        return None, "its memory holds no request beside the weights"
    link = links.link_of(machine.gpu, tp)

    def step(requests: int) -> dict[Operator, ideal.Ideal]:
        return ideal.step(load.shape, _size(load, phase, requests), machine.gpu, tp, link, load.element)

    def seconds(requests: int) -> float:
        return sum(each.seconds for each in step(requests).values()) / efficiency

    limit = load.token_seconds
    if phase is Phase.PREFILL:
        limit = load.first_token_seconds - load.transfer_seconds
    most = _largest(seconds, limit, min(fitting, MOST_REQUESTS))
    if most < 1:
        return None, f"one request takes {seconds(1):.3g} s, more than the limit leaves"
    best = most if phase is Phase.DECODE else max(range(1, min(most, 64) + 1), key=lambda each: each / seconds(each))
    taken = seconds(best)
    groups = machine.cards // tp
    new = load.input_len if phase is Phase.PREFILL else 1
    rate = groups * best * new / taken
    bound = max(step(best).values(), key=lambda each: each.seconds).bound
    limited = (
        "memory" if best == fitting else "the limit on time" if best == most < MOST_REQUESTS else "nothing more to gain"
    )
    return Choice(
        machine.gpu.name, machine.cards, phase.value, tp, best, taken, rate, machine.price / 3600 / rate * 1e6, (0.0, 0.0),
        bound, limited, efficiency, measured,
    ), ""  # fmt: skip


def _size(load: Demand, phase: Phase, requests: int) -> Batch:
    if phase is Phase.PREFILL:
        return ideal.prefill(requests, load.input_len)
    return ideal.decode(requests, load.input_len, load.output_len)


def _largest(seconds: Callable[[int], float], limit: float, most: int) -> int:
    """Return the most requests whose step takes at most ``limit`` seconds, by bisection; 0 for none."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if seconds(middle) <= limit else (low, middle - 1)
    return low
