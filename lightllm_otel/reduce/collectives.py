"""Transfer and wait of the collectives of matched steps: what moving the data took, and how long each rank waited for the others.

A rank that comes late to a collective waits least, and the last one does not wait at all. So the shortest time over the
ranks is the *transfer*, and what a rank has beyond it is its *wait*. Only durations are compared, never the clocks of
different GPUs. The minimum of several noisy times lies below the true one: by up to the noise that
:func:`noise_seconds` allows, the more the more ranks there are.

In steps that the host launches call by call, a GPU may wait for its host within the call. When it arrived is then known only to
lie within the time that its host took to launch (``Matched.launching``): its time in the collective is at most ``seconds``,
and at least ``Matched.min_seconds``. So the shortest time may be what launching took and no transfer (:func:`has_transfer`),
and the last one may have been another (:func:`last_rank_known`). Such calls are left out where they say nothing. A wait counts
as far as it is certain.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from lightllm_otel.records.vocabulary import Operator, Scope, Site
from lightllm_otel.reduce.histogram import TRANSFER_BOUNDS, WAIT_BOUNDS, Histogram
from lightllm_otel.reduce.matching import Matched
from lightllm_otel.reduce.window import Window
from lightllm_otel.roofline.links import traffic

# From this quantum on, a clock cannot tell one call's transfer: a minimum over its steps would be a rounded-down one.
COARSE_QUANTUM_SECONDS = 0.25e-6
_QUANTA = 4
At = tuple[int, int]
"""Site code, phase code."""


def noise_seconds(quantum: float, boundary_cost: float) -> float:
    """Return the shortest wait that counts, in seconds: some steps of the clock, and the cost of a boundary, both as
    calibrated."""
    return _QUANTA * quantum + boundary_cost


def transfer_and_wait(seconds: np.ndarray, min_seconds: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(transfer, wait)`` in seconds, shapes (calls,) and (ranks, calls).

    ``seconds``: each rank's time in each call, shape (ranks, calls). ``min_seconds``: ``Matched.min_seconds`` where it differs.
    The rank waited at least ``min_seconds - transfer``.
    """
    transfer: np.ndarray = seconds.min(axis=0)
    return transfer, np.maximum((seconds if min_seconds is None else min_seconds) - transfer, 0.0)


def last_rank_known(matched: Matched) -> np.ndarray:
    """Return a mask of the calls whose last rank is known, shape (calls,).

    It is where one rank's time is at most the least time of each of the others.
    """
    others = matched.min_seconds.copy()
    np.put_along_axis(others, _first(matched)[None], np.inf, axis=0)
    return np.asarray(matched.seconds.min(axis=0) <= others.min(axis=0))


def has_transfer(matched: Matched) -> np.ndarray:
    """Return a mask of the calls with a measurable transfer time (last rank known and not launch-bound); shape (calls,)."""
    launching = np.take_along_axis(matched.launching, _first(matched)[None], axis=0)[0]
    return np.asarray(last_rank_known(matched) & (launching == 0))


def _first(matched: Matched) -> np.ndarray:
    """Return the row with the shortest time of each call, shape (calls,); of two equal ones the one that may be shorter still."""
    return np.asarray(np.lexsort((matched.min_seconds, matched.seconds), axis=0)[0])


def last_arrival(wait: np.ndarray, noise: float) -> np.ndarray:
    """Return the row of the rank that came last to each call, shape (calls,), or -1 where not all others waited above the noise.

    ``wait``: seconds, shape (ranks, calls). If two come late together, neither is named.
    """
    last: np.ndarray = wait.argmin(axis=0)
    if len(wait) < 2:
        return np.full(wait.shape[1], -1)
    next_to_last = np.partition(wait, 1, axis=0)[1]
    return np.where(next_to_last > noise, last, -1)


class Kinds:
    """Groups of a step's calls: each call alone, or all of one site and operator over the layers.

    Calls in which a rank was launching always stay alone: the time that this took differs by more than a coarse clock's step.
    ``rows``: the first call of each kind. ``count``: how many calls it stands for. Both of shape (kinds,).
    """

    def __init__(self, matched: Matched, coarse: bool) -> None:
        many = len(matched.calls)
        self.rows, self.count = np.arange(many), np.ones(many, int)
        self._kind = self.rows
        if coarse:
            kinds = matched.calls["operator"].astype(int) * len(Site) + matched.calls["site"]
            alone = (matched.launching > 0).any(axis=0)
            kinds[alone] = -1 - np.flatnonzero(alone)
            _, self.rows, kind, self.count = np.unique(
                kinds, return_index=True, return_inverse=True, return_counts=True
            )
            self._kind = kind.reshape(-1)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Return the mean over each kind, shape (ranks, kinds), of ``values``, shape (ranks, calls)."""
        sums = [np.bincount(self._kind, of_rank, len(self.rows)) for of_rank in values]
        return np.asarray(np.stack(sums) / self.count)


class Collectives:
    """Counters and histograms by (site, phase) and rank. Their size does not depend on how long a server runs.

    ``payload_bytes``: (operator, site, phase, implementation) → bytes, each call of the group once; ``bus_bytes``: what the
    busiest link had to carry of them, by nccl-tests' factors. ``local_seconds``, ``local_calls``: of a group that spans
    hosts, where the shortest time among a host's own ranks is not the transfer. ``known``: calls that say who came last.
    ``operators`` of each site and phase.
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
        self.known: dict[At, int] = defaultdict(int)
        self.operators: dict[At, int] = {}
        self.windows: dict[At, Window] = defaultdict(Window)

    def add(self, matched: Matched, quantum: float, boundary_cost: float) -> None:
        """Add the collectives of one step. ``quantum``: the clock's step; ``boundary_cost``: of one boundary; both in seconds."""
        phase = int(matched.step["phase"])
        coarse = quantum >= COARSE_QUANTUM_SECONDS
        moved = matched.only(has_transfer(matched))
        self._count_payloads(moved, phase)
        self._count_transfers(moved, phase, coarse)
        if matched.scope is Scope.NODE:
            return
        noise = noise_seconds(quantum, boundary_cost)
        self._count_waits(matched, phase, coarse, noise)
        self._count_last(matched.only(last_rank_known(matched)), phase, coarse, noise)

    def _count_transfers(self, moved: Matched, phase: int, coarse: bool) -> None:
        kinds = Kinds(moved, coarse)
        transfer, _ = transfer_and_wait(kinds.mean(moved.seconds))
        count = kinds.count
        sites, payloads = moved.calls["site"][kinds.rows], moved.calls["payload_bytes"][kinds.rows]
        for site in np.unique(sites).tolist():
            chosen = sites == site
            if moved.scope is Scope.NODE:
                self.local_seconds[site, phase] += float((transfer * count)[chosen].sum())
                self.local_calls[site, phase] += int(count[chosen].sum())
                continue
            self._histogram(self.transfer, TRANSFER_BOUNDS, site, phase).observe(
                np.repeat(transfer[chosen], count[chosen])
            )
            self.windows[site, phase].add(payloads[chosen], transfer[chosen])

    def _count_waits(self, matched: Matched, phase: int, coarse: bool, noise: float) -> None:
        kinds = Kinds(matched, coarse)
        _, wait = transfer_and_wait(kinds.mean(matched.seconds), kinds.mean(matched.min_seconds))
        sites = matched.calls["site"][kinds.rows]
        for site in np.unique(sites).tolist():
            chosen = sites == site
            own, times = wait[:, chosen], kinds.count[chosen]
            self._histogram(self.wait, WAIT_BOUNDS, site, phase).observe(np.repeat(own, times, axis=1).reshape(-1))
            waited = (np.where(own > noise, own, 0.0) * times).sum(axis=1)
            self.operators[site, phase] = int(matched.calls["operator"][kinds.rows][chosen][0])
            for row, rank in enumerate(matched.ranks):
                self.wait_seconds[site, phase, rank] += float(waited[row])
                if site != Site.EMBEDDING.code:
                    self.last_arrivals[site, phase, rank] += 0  # from the first call on: a rate needs to see it rise

    def _count_last(self, known: Matched, phase: int, coarse: bool, noise: float) -> None:
        """Count the last rank of each call. ``known``: calls of which it is known."""
        kinds = Kinds(known, coarse)
        _, wait = transfer_and_wait(kinds.mean(known.seconds), kinds.mean(known.min_seconds))
        last, sites = last_arrival(wait, noise), known.calls["site"][kinds.rows]
        # The embedding's comes first in a step: who is late there was woken late by the host, and says nothing of a GPU.
        for site in set(np.unique(sites).tolist()) - {Site.EMBEDDING.code}:
            times = np.where(sites == site, kinds.count, 0)
            self.known[site, phase] += int(times.sum())
            for row, rank in enumerate(known.ranks):
                self.last_arrivals[site, phase, rank] += int(times[last == row].sum())

    def _count_payloads(self, matched: Matched, phase: int) -> None:
        calls = matched.calls
        kinds = np.stack([calls[name].astype(int) for name in ("operator", "site", "implementation")], axis=1)
        found, kind = np.unique(kinds, axis=0, return_inverse=True)
        sums = np.bincount(kind.reshape(-1), calls["payload_bytes"], len(found))
        for (operator, site, how), payload in zip(found.tolist(), sums.tolist()):
            self.payload_bytes[operator, site, phase, how] += int(payload)
            if matched.scope is Scope.GROUP:
                self.bus_bytes[site, phase] += traffic(Operator.of(operator).value, payload, matched.size)

    def _histogram(self, of: dict[At, Histogram], bounds: np.ndarray, site: int, phase: int) -> Histogram:
        if (site, phase) not in of:
            of[site, phase] = Histogram(bounds)
        return of[site, phase]
