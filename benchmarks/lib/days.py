"""Simulated days of one server as Prometheus would scrape them: load, deploys, drift, noise, and faults that are put in.

What one step's noise is, is fitted (noise.py). What the recordings of some seconds cannot say is assumed, in
:class:`Assumed`: how far the speed wanders within minutes and hours, how often something else disturbs it, how load moves.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from noise import Noise

RANKS = 4
LAYERS = 32
SAMPLED_EVERY = 64
DAY = 86400
GRID = 30  # seconds between two scrapes
PER_DAY = DAY // GRID
SETTLING = 600  # seconds of a slow start after a deploy
# Seconds of a decode step and of each request in it; the collectives are a fifth of a step at 32 requests.
OPERATORS = {"attention": (0.8e-3, 40e-6), "ffn": (3.0e-3, 6e-6), "all_reduce": (1.2e-3, 12e-6)}
CALLS = 2 * LAYERS


@dataclasses.dataclass(frozen=True)
class Assumed:
    """``wander``: (relative deviation, seconds that it lasts) of slow changes of an operator's speed.

    ``disturbances``: a day; each lasts ``disturbance_seconds`` (median, log-normal) and makes all_reduce slower by
    ``disturbance`` at least, Pareto-distributed with exponent 2. ``bucket``: relative error of what is expected at one load.
    """

    wander: tuple[tuple[float, float], ...] = ((0.005, 300.0), (0.005, 7200.0))
    disturbances: float = 4.0
    disturbance_seconds: float = 45.0
    disturbance: float = 0.01
    bucket: float = 0.007
    drift_per_day: float = 0.0002
    days_between_deploys: float = 3.0
    settling: float = 0.04


@dataclasses.dataclass(frozen=True)
class Fault:
    """From ``start`` (seconds) for ``lasts``: the transfer of all_reduce, or the ``rank``'s own operators, slower by ``slower``;
    or all operators of all ranks (``everything``).
    """

    kind: str  # transfer, rank, everything
    start: float
    lasts: float
    slower: float = 0.0
    rank: int = 0

    def over(self, times: np.ndarray) -> np.ndarray:
        return (times >= self.start) & (times < self.start + self.lasts)


def wandering(random: np.random.Generator, points: int, deviation: float, lasts: float) -> np.ndarray:
    """A stationary autocorrelated series (Ornstein-Uhlenbeck) on the grid."""
    keep = float(np.exp(-GRID / lasts))
    shocks = random.standard_normal(points) * deviation * np.sqrt(1 - keep**2)
    shocks[0] = random.standard_normal() * deviation
    found = np.empty(points)
    level = 0.0
    for at, shock in enumerate(shocks.tolist()):
        level = keep * level + shock
        found[at] = level
    return found


def heavy(random: np.random.Generator, noise: Noise, points: int) -> np.ndarray:
    """Student's distribution with the fitted tails, of deviation 1."""
    drawn: np.ndarray = random.standard_t(noise.freedom, points) / np.sqrt(noise.freedom / (noise.freedom - 2))
    return drawn


def load(random: np.random.Generator, times: np.ndarray) -> np.ndarray:
    """Requests in a decode step: day and night, weekends, shifts of several days, and what wanders within minutes."""
    hours = times / 3600 % 24
    daily = 0.3 + 0.7 * (0.5 - 0.5 * np.cos(2 * np.pi * (hours - 4) / 24))
    weekend = np.where((times // DAY).astype(int) % 7 >= 5, 0.6, 1.0)
    shifts = np.ones(len(times))
    for at in random.uniform(0, times[-1], random.poisson(times[-1] / DAY / 2)):
        shifts[times >= at] = np.exp(random.normal(0, 0.35))
    wander = np.exp(wandering(random, len(times), 0.15, 1200) + wandering(random, len(times), 0.1, 90))
    found: np.ndarray = np.clip(np.round(32 * daily * weekend * shifts * wander), 1, 96)
    return found


def slowdowns(random: np.random.Generator, times: np.ndarray, assumed: Assumed, deploys: list[float]) -> np.ndarray:
    """By what all_reduce is slower for other reasons than a fault: wander, drift, disturbances, settling after a deploy."""
    slower = sum((wandering(random, len(times), *how) for how in assumed.wander), np.zeros(len(times)))
    slower += assumed.drift_per_day * times / DAY
    for at in random.uniform(0, times[-1], random.poisson(assumed.disturbances * times[-1] / DAY)):
        lasts = assumed.disturbance_seconds * np.exp(random.normal())
        # A scrape sees the part of a disturbance that lies between it and the one before.
        part = np.clip((np.minimum(times, at + lasts) - np.maximum(times - GRID, at)) / GRID, 0, 1)
        slower += part * min(assumed.disturbance * (1 + random.pareto(2)), 1.0)
    for deploy in deploys:
        since = times - deploy
        slower += np.where((since > 0) & (since < SETTLING), assumed.settling * (1 - since / SETTLING), 0)
    return slower


@dataclasses.dataclass
class Days:
    """``times``: of each scrape, shape (n,). ``columns``: series (metric and labels but for those of the target) → values,
    NaN where nothing was scraped; counters as they grow. ``deploys``: when the server was replaced.
    """

    times: np.ndarray
    deploys: list[float]
    columns: dict[str, np.ndarray]
    grid: int = GRID


def in_flight(random: np.random.Generator, times: np.ndarray, busy: np.ndarray, stuck_since: np.ndarray) -> np.ndarray:
    """How long the step on the GPU has been there when a scrape comes: long prompts take seconds.

    ``stuck_since``: when the step was entered that does not end, NaN at times when there is none; shapes (n,).
    """
    held = np.where(random.random(len(times)) < busy, np.minimum(random.pareto(1.5, len(times)) * 0.02, 8.0), 0.0)
    found: np.ndarray = np.where(np.isnan(stuck_since), held, times - stuck_since)
    return found


def stuck_hour(seed: int, start: float, grid: int) -> Days:
    """An hour of a server whose step ends no more from ``start`` on, as far as alerts on that are concerned."""
    random = np.random.default_rng(seed)
    times = np.arange(3600 // grid) * float(grid)
    since = np.where(times >= start, start, np.nan)
    shown = in_flight(random, times, np.full(len(times), 0.8), since)
    columns = {f'lightllm_gpu_step_in_flight_seconds{{rank="{rank}"}}': shown for rank in range(RANKS)}
    return Days(times, [], columns, grid)


def simulate(
    seed: int, days: int, noise: Noise, assumed: Assumed, faults: tuple[Fault, ...] = (), drifted: float = 0.0
) -> Days:
    """``drifted``: how much slower all_reduce has become before."""
    random = np.random.default_rng(seed)
    times = np.arange(days * PER_DAY) * float(GRID)
    deploys = sorted(random.uniform(0, times[-1], random.poisson(days / assumed.days_between_deploys)).tolist())
    deploys = [at for at in deploys if all(abs(at - fault.start) > 7200 + fault.lasts for fault in faults)]
    requests = load(random, times)
    busy = np.clip(requests / 24, 0.04, 1.0)
    slower = {name: np.zeros(len(times)) for name in OPERATORS}
    slower["all_reduce"] = drifted + slowdowns(random, times, assumed, deploys)
    waiting = 0.06 * np.exp(wandering(random, len(times), 0.2, 1800))  # share of a collective that a rank waits
    habit = random.dirichlet(np.full(RANKS, 6.0))
    late = np.exp(np.stack([wandering(random, len(times), 0.25, 3600) for _ in range(RANKS)])) * habit[:, None]
    late *= 0.15 / late.sum(axis=0)  # of the collectives, with nobody at fault
    expected = {name: fixed + each * requests for name, (fixed, each) in OPERATORS.items()}
    for fault in faults:
        now = fault.over(times)
        if fault.kind in ("transfer", "everything"):
            slower["all_reduce"] += now * fault.slower
        if fault.kind == "everything":
            for name in ("attention", "ffn"):
                slower[name] += now * fault.slower
        if fault.kind == "rank":
            _rank_is_late(fault, now, expected, slower, waiting, late)
    measured = _measured(random, times, noise, assumed, requests, busy, expected, slower)
    return Days(times, deploys, _series(random, times, deploys, requests, busy, expected, measured, waiting, late))


def _rank_is_late(
    fault: Fault, now: np.ndarray, expected: dict[str, np.ndarray], slower: dict[str, np.ndarray], waiting: np.ndarray,
    late: np.ndarray,
) -> None:  # fmt: skip
    """The others wait for the rank in every layer: in their all_reduce, which is that much longer."""
    own = expected["attention"] + expected["ffn"]
    delay = now * fault.slower * own / CALLS  # for each call
    call = expected["all_reduce"] / CALLS
    slower["all_reduce"] += (RANKS - 1) / RANKS * delay / call
    for name in ("attention", "ffn"):
        slower[name] += now * fault.slower / RANKS
    waiting += delay / (call + delay)
    surely = 1 - np.exp(-delay / (0.12 * call))  # how far the delay stands out of when ranks arrive anyway
    late *= 1 - surely
    late[fault.rank] += surely


def _measured(
    random: np.random.Generator, times: np.ndarray, noise: Noise, assumed: Assumed, requests: np.ndarray, busy: np.ndarray,
    expected: dict[str, np.ndarray], slower: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:  # fmt: skip
    """Mean seconds of each operator in the steps that were sampled between two scrapes."""
    buckets = np.floor(4 * np.log2(requests)).astype(int)
    sampled = busy * GRID / sum(expected.values()) / SAMPLED_EVERY
    worth = noise.effective(sampled, SAMPLED_EVERY)
    found = {}
    for name, seconds in expected.items():
        wrong = random.normal(0, assumed.bucket, 40)[buckets]
        deviation = noise.deviation * (1.0 if name == "all_reduce" else 0.3)
        shaken = deviation * heavy(random, noise, len(times)) / np.sqrt(worth)
        found[name] = seconds * (1 + wrong) * np.maximum(1 + slower[name] + shaken, 0.2)
    return found


def _series(
    random: np.random.Generator, times: np.ndarray, deploys: list[float], requests: np.ndarray, busy: np.ndarray,
    expected: dict[str, np.ndarray], measured: dict[str, np.ndarray], waiting: np.ndarray, late: np.ndarray,
) -> dict[str, np.ndarray]:  # fmt: skip
    """What the exporter shows; all grow from nothing, and :func:`scraped` cuts them at deploys."""
    whole = sum(measured.values())
    prefill = 0.2 * busy
    steps = np.clip(busy - prefill, 0.02, 1) * GRID / (1.03 * whole)
    sampled = steps / SAMPLED_EVERY
    calls = sampled * CALLS
    collective = measured["all_reduce"] / CALLS
    grow: dict[str, np.ndarray] = {
        'lightllm_gpu_step_duration_seconds_sum{phase="decode",mode="graph"}': steps * whole * RANKS,
        'lightllm_gpu_step_duration_seconds_count{phase="decode",mode="graph"}': steps * RANKS,
        'lightllm_gpu_step_duration_seconds_sum{phase="prefill",mode="eager"}': prefill * GRID * RANKS,
        'lightllm_gpu_step_duration_seconds_count{phase="prefill",mode="eager"}': prefill * GRID / 0.2 * RANKS,
        'lightllm_gpu_step_requests_total{phase="decode"}': steps * requests,
        "lightllm_otel_steps_sampled_total": sampled * RANKS,
        'lightllm_otel_records_dropped_total{reason="overwritten"}': 0 * steps,
        'lightllm_otel_errors_total{stage="measure"}': 0 * steps,
        'lightllm_gpu_collective_transfer_seconds_sum{site="attention",phase="decode"}': calls
        * collective
        * (1 - waiting),
        'lightllm_gpu_collective_transfer_seconds_count{site="attention",phase="decode"}': calls,
        'lightllm_gpu_collective_wait_seconds_sum{site="attention",phase="decode"}': calls
        * collective
        * waiting
        * RANKS,
        'lightllm_gpu_collective_wait_seconds_count{site="attention",phase="decode"}': calls * RANKS,
    }
    for name in OPERATORS:
        labels = f'{{operator="{name}",phase="decode"}}'
        grow[f"lightllm_gpu_operator_compared_seconds_total{labels}"] = measured[name] * sampled * RANKS
        grow[f"lightllm_gpu_operator_expected_seconds_total{labels}"] = expected[name] * sampled * RANKS
    came_last = random.poisson(late * calls)
    for rank in range(RANKS):
        at = f'{{site="attention",phase="decode",rank="{rank}"}}'
        grow[f"lightllm_gpu_collective_last_arrivals_total{at}"] = came_last[rank]
        grow[f'lightllm_gpu_idle_seconds_total{{reason="host",rank="{rank}"}}'] = 0.03 * steps * whole
    columns = {name: np.cumsum(values) for name, values in grow.items()}
    held = in_flight(random, times, busy, np.full(len(times), np.nan))
    for rank in range(RANKS):
        columns[f'lightllm_gpu_step_in_flight_seconds{{rank="{rank}"}}'] = held
    tail = 1.5 * np.exp(np.abs(wandering(random, len(times), 0.15, 1800)))
    columns['lightllm_gpu_collective_tail_ratio{site="attention",phase="decode"}'] = tail
    columns["lightllm_otel_data_age_seconds"] = np.full(len(times), 0.5)
    columns["lightllm_otel_distortion_ratio"] = np.full(len(times), 1.01)
    columns['lightllm_otel_slot_installed{operator="attention"}'] = np.ones(len(times))
    return columns
