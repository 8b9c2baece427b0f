"""Straggler: the rank that the others wait for, and the reason, as one sentence from scrapes of ``/metrics``."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping
from typing import Optional

from lightllm_otel.records.vocabulary import COLLECTIVES, Operator, Site
from lightllm_otel.tools.scrape import Scrape

LEAST_ARRIVALS = 20
# A rank is named if it arrives last this many times as often as by chance.
_TIMES_CHANCE = 1.5
_LEAST_WAIT = 0.01  # share of the time in collectives; smaller waits do not matter
_SLOWER = 0.02
_LEAST_SHARE = 0.01  # share of the rank's time; smaller operators do not matter
_LEAST_THROTTLED_SECONDS = 1.0
_NOT_THE_GPUS_WORK = {operator.value for operator in (*COLLECTIVES, Operator.GAP, Operator.SAMPLING)}
ByRank = dict[str, float]


def straggler(now: Scrape, before: Optional[Scrape] = None) -> str:
    """Return a sentence about the straggler between two scrapes, or since the start of the exporter.

    Return an empty string if there is too little to compare.
    """
    arrivals = _by_rank("lightllm_gpu_collective_last_arrivals_total", now, before)
    total = sum(arrivals.values())
    if len(arrivals) < 2 or total < LEAST_ARRIVALS:
        return ""
    waited = _waited(now, before)
    if waited < _LEAST_WAIT:
        return f"no rank is late: waits take {100 * waited:.1f} % of the time in collectives"
    rank = max(arrivals, key=lambda each: arrivals[each])
    share = arrivals[rank] / total
    if share < min(_TIMES_CHANCE / len(arrivals), 1.0):
        return "no rank is late: each arrived last about as often as the others"
    parts = [f"rank {rank} arrived last in {100 * share:.0f} % of the collectives in which there was a wait"]
    parts += [
        reason
        for reason in (_slowest(rank, now, before), _throttled(rank, now, before), _errors(rank, now, before))
        if reason
    ]
    return "; ".join(parts)


def _waited(now: Scrape, before: Optional[Scrape]) -> float:
    """Return the share of waits in the time of collectives, in sampled steps. Waits after the embedding do not count."""
    waits = _gained("lightllm_gpu_collective_rank_wait_seconds_total", now, before)
    seconds = _gained("lightllm_gpu_operator_seconds_total", now, before)
    collectives = {operator.value for operator in COLLECTIVES}
    spent = sum(value for labels, value in seconds.items() if dict(labels)["operator"] in collectives)
    lost = sum(value for labels, value in waits.items() if dict(labels)["site"] != Site.EMBEDDING.value)
    return lost / spent if spent > 0 else 0.0


def _slowest(rank: str, now: Scrape, before: Optional[Scrape]) -> str:
    """Return a phrase about the operator that is slowest compared with the median of the other ranks."""
    found: dict[tuple[str, str], ByRank] = defaultdict(dict)
    for labels, seconds in _gained("lightllm_gpu_operator_seconds_total", now, before).items():
        named = dict(labels)
        if named["operator"] not in _NOT_THE_GPUS_WORK:
            found[named["operator"], named["phase"]][named["rank"]] = seconds
    own = sum(of_rank.get(rank, 0.0) for of_rank in found.values())
    excess = {}
    for key, of_rank in found.items():
        others = [seconds for each, seconds in of_rank.items() if each != rank]
        middle = statistics.median(others) if others else 0.0
        if middle > 0 and of_rank.get(rank, 0.0) >= _LEAST_SHARE * own:
            excess[key] = of_rank[rank] / middle - 1
    if not excess or max(excess.values()) < _SLOWER:
        return "its operators are as fast as the others'"
    operator, phase = max(excess, key=lambda key: excess[key])
    return f"its {operator} is {100 * excess[operator, phase]:.0f} % slower in {phase}"


def _throttled(rank: str, now: Scrape, before: Optional[Scrape]) -> str:
    reasons = {
        dict(labels)["reason"]: seconds
        for labels, seconds in _gained("lightllm_gpu_throttled_seconds_total", now, before).items()
        if dict(labels)["rank"] == rank and seconds >= _LEAST_THROTTLED_SECONDS
    }
    return " and ".join(f"{reason} throttling for {seconds:.0f} s" for reason, seconds in sorted(reasons.items()))


def _errors(rank: str, now: Scrape, before: Optional[Scrape]) -> str:
    errors = {
        dict(labels)["link"]: count
        for labels, count in _gained("lightllm_gpu_link_errors_total", now, before).items()
        if dict(labels)["rank"] == rank and count > 0
    }
    return " and ".join(f"{count:.0f} {link} errors" for link, count in sorted(errors.items()))


def _by_rank(name: str, now: Scrape, before: Optional[Scrape]) -> ByRank:
    sums: ByRank = defaultdict(float)
    for labels, value in _gained(name, now, before).items():
        sums[dict(labels)["rank"]] += value
    return sums


def _gained(name: str, now: Scrape, before: Optional[Scrape]) -> Mapping[tuple[tuple[str, str], ...], float]:
    earlier = before.samples.get(name, {}) if before is not None else {}
    return {labels: value - earlier.get(labels, 0.0) for labels, value in now.samples.get(name, {}).items()}
