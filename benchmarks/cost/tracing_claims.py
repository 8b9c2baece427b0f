"""What ``tracing.py`` claims, from its rows and from the spans that arrived."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

Rows = list[dict[str, Any]]
SHARES = (1, 10, 100)  # percent of the requests
NONE = 0  # on the server that has traces
PLAIN = -1  # on the server that has none
DROPPED = "spans_dropped_"
MOST_DIFFERENCE = 0.01  # of a request's span, between it and its children
TARGET_PERCENT = 0.5  # at 10 % traced
RESAMPLES = 4000
PARTS = {"lightllm.tokenise", "lightllm.queue", "lightllm.prefill", "lightllm.decode", "lightllm.tail"}


def complete(request: Mapping[str, Any], parts: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a request has all of its parts, one after the other, which add up to it."""
    ordered = sorted(parts, key=lambda part: part["start"])
    whole = request["end"] - request["start"]
    return (
        {part["name"] for part in ordered} == PARTS
        and all(before["end"] == after["start"] for before, after in zip(ordered, ordered[1:]))
        and abs(sum(part["end"] - part["start"] for part in ordered) - whole) <= MOST_DIFFERENCE * whole
    )


def completeness(spans: Iterable[Mapping[str, Any]], parents: Iterable[str]) -> dict[str, int]:
    """Of the requests that were traced: how many have a trace, under the caller's span, and how many a complete one."""
    children: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    servers: dict[str, Mapping[str, Any]] = {}
    for span in spans:
        children[span["parent"]].append(span)
        if span["server"]:
            servers[span["parent"]] = span
    wanted = list(parents)
    found = [servers[parent] for parent in wanted if parent in servers]
    whole = [request for request in found if complete(request, children[request["span"]])]
    return {
        "traced": len(wanted),
        "found": len(found),
        "complete": len(whole),
        "foreign": len(set(servers) - set(wanted)),
    }


def links(spans: Iterable[Mapping[str, Any]], lists: list[list[int]]) -> dict[str, int]:
    """Step spans against LightLLM's own list of requests in each step; the n-th line is step n."""
    every = list(spans)
    numbers = {span["span"]: int(span["request"]) for span in every if span["server"]}
    steps = [span for span in every if span["step"] is not None and span["name"].startswith("lightllm.step ")]
    right = linked_in_all = 0
    for step in steps:
        linked = {numbers[link] for link in step["links"] if link in numbers}
        listed = set(lists[step["step"]]) if step["step"] < len(lists) else set()
        linked_in_all += len(linked)
        right += len(linked) == len(step["links"]) and linked == listed & set(numbers.values())
    return {"steps": len(steps), "right": right, "linked": linked_in_all}


def loss(rows: Iterable[Mapping[str, Any]], share: int, against: int = PLAIN) -> dict[str, Any]:
    """Percent of the tokens per second that are lost with so many percent traced, over blocks, with an interval."""
    found = change(rows, share, against, "tokens_per_second")
    low, high = found["ci95"] or (None, None)
    return {
        "throughput_loss_percent": None if low is None else -found["percent"], "ci95": None if low is None else [-high, -low],
        "blocks": found["blocks"],
    }  # fmt: skip


def change(rows: Iterable[Mapping[str, Any]], share: int, against: int, of: str) -> dict[str, Any]:
    """By how many percent ``of`` is larger with so many percent traced: the mean over blocks, and its 95 % interval."""
    blocks: dict[Any, dict[int, float]] = defaultdict(dict)
    for row in rows:
        if row.get(of):
            blocks[row.get("lane", 0), row["block"]][row["share_percent"]] = row[of]
    pairs = np.array([(block[against], block[share]) for block in blocks.values() if {against, share} <= set(block)])
    if not len(pairs):
        return {"percent": None, "ci95": None, "blocks": 0}
    more = 100 * (pairs[:, 1] / pairs[:, 0] - 1)
    random = np.random.default_rng(0)
    drawn = more[random.integers(0, len(more), (RESAMPLES, len(more)))].mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {
        "percent": round(float(more.mean()), 3), "ci95": [round(float(low), 3), round(float(high), 3)], "blocks": len(more),
    }  # fmt: skip


def summarise(rows: Rows) -> dict[str, Any]:
    """Everything from the rows alone; None for what is not measured yet."""
    rounds = [row for row in rows if row.get("kind") == "round"]
    traces, checked = (total(rows, kind) for kind in ("traces", "links"))
    losses = {str(share): loss(rounds, share) for share in SHARES}
    within = {str(share): loss(rounds, share, NONE) for share in SHARES}
    cpu = {str(share): change(rounds, share, NONE, "cpu_seconds") for share in SHARES}
    return {
        "throughput_loss_percent": {share: each["throughput_loss_percent"] for share, each in losses.items()},
        "throughput_loss_percent_ci95": {share: each["ci95"] for share, each in losses.items()},
        "throughput_loss_percent_within": {share: each["throughput_loss_percent"] for share, each in within.items()},
        "throughput_loss_percent_within_ci95": {share: each["ci95"] for share, each in within.items()},
        "cpu_increase_percent": {share: each["percent"] for share, each in cpu.items()},
        "cpu_increase_percent_ci95": {share: each["ci95"] for share, each in cpu.items()},
        "blocks": min(each["blocks"] for each in losses.values()),
        "target_percent_at_10": TARGET_PERCENT,
        "complete_traces_percent": percent(traces.get("complete"), traces.get("traced")),
        "traced_requests": traces.get("traced"),
        "right_step_links_percent": percent(checked.get("right"), checked.get("steps")),
        "checked_steps": checked.get("steps"), "checked_links": checked.get("linked"),
        "errors": traces.get("errors"), "spans_dropped": traces.get("spans_dropped"),
        "spans_dropped_by_reason": {
            name.removeprefix(DROPPED): count for name, count in traces.items() if name.startswith(DROPPED) and name != DROPPED
        },
    }  # fmt: skip


def total(rows: Rows, kind: str) -> dict[str, Any]:
    """The sums of all rows of a kind; empty where there is none."""
    found: dict[str, Any] = defaultdict(int)
    for row in rows:
        if row.get("kind") == kind:
            for name, value in row.items():
                if name not in ("kind", "lane"):
                    found[name] += value
    return found


def percent(part: int | None, whole: int | None) -> float | None:
    return None if part is None or not whole else round(100 * part / whole, 3)
