"""Who keeps the others waiting, and why, as one sentence from ``/metrics``."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping
from typing import Optional

from lightllm_otel.records.vocabulary import COLLECTIVES, Operator, Site
from lightllm_otel.tools.scrape import Scrape

LEAST_ARRIVALS = 20
# A rank is named when it is last this many times as often as if chance decided.
_OFTENER = 1.5
_LEAST_WAIT = 0.01  # of the time in collectives: who is late by less keeps nobody waiting
_SLOWER = 0.02
_LEAST_SHARE = 0.01  # of the rank's time; nobody cares about others
_LEAST_THROTTLED_SECONDS = 1.0
_NOT_THE_GPUS_WORK = {operator.value for operator in (*COLLECTIVES, Operator.GAP, Operator.SAMPLING)}
ByRank = dict[str, float]


def straggler(now: Scrape, before: Optional[Scrape] = None) -> str:
    """Of what happened between two readings, or since the exporter's start. Empty where there is nothing to compare."""
    arrivals = _by_rank("lightllm_gpu_collective_last_arrivals_total", now, before)
    total = sum(arrivals.values())
    if len(arrivals) < 2 or total < LEAST_ARRIVALS:
        return ""
    waited = _waited(now, before)
    if waited < _LEAST_WAIT:
        return f"no rank is late: waits are {100 * waited:.1f} % of the time in collectives"
    rank = max(arrivals, key=lambda each: arrivals[each])
    share = arrivals[rank] / total
    if share < min(_OFTENER / len(arrivals), 1.0):
        return "no rank is late: each arrived last about as often as the others"
    parts = [f"rank {rank} arrived last in {100 * share:.0f} % of the collectives in which there was a wait"]
    parts += [
        reason
        for reason in (_slowest(rank, now, before), _throttled(rank, now, before), _errors(rank, now, before))
        if reason
    ]
    return "; ".join(parts)


def _waited(now: Scrape, before: Optional[Scrape]) -> float:
    """Waits as a share of the time that ranks spent in collectives, in sampled steps; the embedding's left out."""
    waits = _gained("lightllm_gpu_collective_rank_wait_seconds_total", now, before)
    seconds = _gained("lightllm_gpu_operator_seconds_total", now, before)
    collectives = {operator.value for operator in COLLECTIVES}
    spent = sum(value for labels, value in seconds.items() if dict(labels)["operator"] in collectives)
    lost = sum(value for labels, value in waits.items() if dict(labels)["site"] != Site.EMBEDDING.value)
    return lost / spent if spent > 0 else 0.0


def _slowest(rank: str, now: Scrape, before: Optional[Scrape]) -> str:
    """The operator that this rank is slowest in, beside the median of the others, if that is worth a word."""
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
