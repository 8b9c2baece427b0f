"""Collectives of matched steps, told apart: what moving the data took, and what each rank waited for the others.

A rank that comes late to a collective waits least, and the last one does not wait at all. So the shortest time over the
ranks is the *transfer*, and what a rank has beyond it is its *wait*. Only durations are compared, never the clocks of
different GPUs. The minimum of several noisy times lies below the true one: by up to the noise that
:func:`noise_seconds` allows, the more the more ranks there are.

In steps that the host launches call by call, a GPU may wait for its host within the call. When it arrived is then known only to
lie within the time that its host took to launch (``Matched.launching``): its time in the collective is between ``seconds -
launching`` and ``seconds``. So the shortest time may be what launching took and no transfer (:func:`told`), and the last one may
have been another (:func:`sure`). Such calls are left out of what they say nothing of; a wait counts as far as it is certain.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from lightllm_otel.aggregate.histogram import Histogram, collective_bounds
from lightllm_otel.aggregate.matching import Matched
from lightllm_otel.aggregate.window import Window
from lightllm_otel.theory.links import traffic
from lightllm_otel.vocabulary import Operator, Scope, Site

# From this quantum on, a clock cannot tell one call's transfer: a minimum over its steps would be a rounded-down one.
COARSE_QUANTUM_SECONDS = 0.25e-6
# From the launch of a kernel to its start on a GPU that has nothing else to do: some microseconds.
START_SECONDS = 10e-6
_QUANTA = 4
At = tuple[int, int]
"""Site code, phase code."""


def noise_seconds(quantum: float, boundary_cost: float) -> float:
    """The least wait that is taken for one: some steps of the clock, and what one boundary costs, both as calibrated."""
    return _QUANTA * quantum + boundary_cost


def split(seconds: np.ndarray, launching: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """``(transfer, wait)`` of calls on each rank (``seconds``, shape (ranks, calls)): shapes (calls,) and (ranks, calls).

    ``launching``: as in Matched, or what it adds up to; it is not taken for waiting.
    """
    transfer: np.ndarray = seconds.min(axis=0)
    return transfer, np.maximum(least(seconds, launching) - transfer, 0.0)


def least(seconds: np.ndarray, launching: np.ndarray | float) -> np.ndarray:
    """What a rank's time in the collective is at least; the same shape."""
    started = np.where(np.asarray(launching) > 0, launching + START_SECONDS, 0.0)
    return np.asarray(np.maximum(seconds - started, 0.0))


def sure(matched: Matched) -> np.ndarray:
    """Which of its calls say who came last, shape (calls,): one rank's time is at most what each of the others' is at least."""
    others = least(matched.seconds, matched.launching)
    np.put_along_axis(others, _shortest(matched)[None], np.inf, axis=0)
    return np.asarray(matched.seconds.min(axis=0) <= others.min(axis=0))


def told(matched: Matched) -> np.ndarray:
    """Which of its calls say what moving the data took, shape (calls,): the last rank's GPU had nothing else to wait for."""
    launching = np.take_along_axis(matched.launching, _shortest(matched)[None], axis=0)[0]
    return np.asarray(sure(matched) & (launching == 0))


def _shortest(matched: Matched) -> np.ndarray:
    return np.asarray(matched.seconds.argmin(axis=0))


def last_arrival(wait: np.ndarray, noise: float) -> np.ndarray:
    """For each call the row of the rank that came last, or -1 where all of the others did not wait longer than the noise.

    ``wait``: shape (ranks, calls). Of two that came late together neither is named.
    """
    last: np.ndarray = wait.argmin(axis=0)
    if len(wait) < 2:
        return np.full(wait.shape[1], -1)
    next_to_last = np.partition(wait, 1, axis=0)[1]
    return np.where(next_to_last > noise, last, -1)


def over_layers(matched: Matched) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Calls of a site and operator added up over the layers, for a coarse clock.

    Returns ``(rows, seconds, launching, count)``: the first call of each kind, seconds and launching of an average call on
    each rank (shape (ranks, kinds)), and how many calls that stands for (shape (kinds,)).
    """
    kinds = matched.calls["operator"].astype(int) * len(Site) + matched.calls["site"]
    _, rows, kind, count = np.unique(kinds, return_index=True, return_inverse=True, return_counts=True)
    seconds, launching = (
        np.stack([np.bincount(kind.reshape(-1), row, len(rows)) for row in of_rank]) / count
        for of_rank in (matched.seconds, matched.launching)
    )
    return rows, seconds, launching, count


def each_call(matched: Matched) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """As :func:`over_layers`, for a clock that tells calls apart."""
    many = len(matched.calls)
    return np.arange(many), matched.seconds, matched.launching, np.ones(many, int)


class Collectives:
    """Counters and histograms by (site, phase) and rank. Their size does not depend on how long a server runs.

    ``payload_bytes``: (operator, site, phase, implementation) → bytes, each call of the group once; ``bus_bytes``: what the
    busiest link had to carry of them, by nccl-tests' factors. ``local_seconds``, ``local_calls``: of a group that spans
    hosts, where the shortest time among a host's own ranks is not the transfer.
    """

    def __init__(self) -> None:
        self.transfer: dict[At, Histogram] = {}
        self.wait: dict[At, Histogram] = {}
        self.wait_seconds: dict[tuple[int, int, int], float] = defaultdict(float)
        self.last_arrivals: dict[tuple[int, int, int], int] = defaultdict(int)
        self.payload_bytes: dict[tuple[int, int, int, int], int] = defaultdict(int)
        self.bus_bytes: dict[At, float] = defaultdict(float)
        self.local_seconds: dict[At, float] = defaultdict(float)
        self.local_calls: dict[At, int] = defaultdict(int)
        self.windows: dict[At, Window] = defaultdict(Window)

    def add(self, matched: Matched, quantum: float, boundary_cost: float) -> None:
        """The collectives of one step, by a clock with this quantum, whose boundaries cost so much."""
        phase = int(matched.step["phase"])
        coarse = quantum >= COARSE_QUANTUM_SECONDS
        moved = matched.only(told(matched))
        self._count_payloads(moved, phase)
        self._count_transfers(moved, phase, coarse)
        if matched.scope is Scope.NODE:
            return
        matched = matched.only(sure(matched))
        rows, seconds, launching, count = over_layers(matched) if coarse else each_call(matched)
        _, wait = split(seconds, launching)
        sites = matched.calls["site"][rows]
        for site in np.unique(sites).tolist():
            chosen = sites == site
            times = count[chosen]
            self._histogram(self.wait, site, phase).observe(np.repeat(wait[:, chosen], times, axis=1).reshape(-1))
            self._count_waits(
                matched.ranks, wait[:, chosen], times, (site, phase), noise_seconds(quantum, boundary_cost)
            )

    def _count_transfers(self, moved: Matched, phase: int, coarse: bool) -> None:
        rows, seconds, _, count = over_layers(moved) if coarse else each_call(moved)
        transfer, _ = split(seconds)
        sites, payloads = moved.calls["site"][rows], moved.calls["payload_bytes"][rows]
        for site in np.unique(sites).tolist():
            chosen = sites == site
            if moved.scope is Scope.NODE:
                self.local_seconds[site, phase] += float((transfer * count)[chosen].sum())
                self.local_calls[site, phase] += int(count[chosen].sum())
                continue
            self._histogram(self.transfer, site, phase).observe(np.repeat(transfer[chosen], count[chosen]))
            self.windows[site, phase].add(payloads[chosen], transfer[chosen])

    def _count_waits(self, ranks: tuple[int, ...], wait: np.ndarray, times: np.ndarray, at: At, noise: float) -> None:
        waited = (np.where(wait > noise, wait, 0.0) * times).sum(axis=1)
        last = last_arrival(wait, noise)
        for row, rank in enumerate(ranks):
            self.wait_seconds[at[0], at[1], rank] += float(waited[row])
            # The embedding's comes first in a step: who is late there was woken late by the host, and says nothing of a GPU.
            if at[0] != Site.EMBEDDING.code:
                self.last_arrivals[at[0], at[1], rank] += int(times[last == row].sum())

    def _count_payloads(self, matched: Matched, phase: int) -> None:
        calls = matched.calls
        kinds = np.stack([calls[name].astype(int) for name in ("operator", "site", "implementation")], axis=1)
        found, kind = np.unique(kinds, axis=0, return_inverse=True)
        sums = np.bincount(kind.reshape(-1), calls["payload_bytes"], len(found))
        for (operator, site, how), payload in zip(found.tolist(), sums.tolist()):
            self.payload_bytes[operator, site, phase, how] += int(payload)
            if matched.scope is Scope.GROUP:
                self.bus_bytes[site, phase] += traffic(Operator.of(operator).value, payload, matched.size)

    def _histogram(self, of: dict[At, Histogram], site: int, phase: int) -> Histogram:
        if (site, phase) not in of:
            of[site, phase] = Histogram(collective_bounds(phase))
        return of[site, phase]
