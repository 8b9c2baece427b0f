"""What ``served.py`` claims of the plugin's cost in a server, from its rows alone."""

from __future__ import annotations

from typing import Any

import pairing
from pairing import Estimate, Sample

Rows = list[dict[str, Any]]
CLOCK_STEP_US = 50.0  # a thread's CPU time that moves by more says nothing of a step


def summarise(rows: Rows) -> dict[str, Any]:
    """By host and shape: what each case costs. ``rows``: those of this script, of any number of hosts."""
    groups: dict[str, dict[str, Rows]] = {}
    for row in rows:
        if "shape" in row:
            groups.setdefault(row["host"], {}).setdefault(row["shape"], []).append(row)
    return {host: {shape: of_shape(own) for shape, own in shapes.items()} for host, shapes in groups.items()}


def of_shape(rows: Rows) -> dict[str, Any]:
    """Of one shape on one host."""
    names = list(dict.fromkeys(row["case"] for row in rows if row.get("kind") == "cell"))
    steps = {name: _sample(rows, "cell", name) for name in names}
    found: dict[str, Any] = {name: _of_case(name, steps, rows) for name in names}
    for row in rows:
        if row.get("kind") in ("start", "plugin"):
            found.setdefault(row["kind"], {})[row["server"]] = {
                name: value for name, value in row.items() if name not in ("kind", "server", "host", "shape", "part")
            }
    own = {row["setting"]: own_us(row) for row in rows if row.get("kind") == "own_time"}
    if own:
        found["own_python"] = own
    found["incomplete"] = [row["why"] for row in rows if row.get("kind") == "incomplete"]
    return found


def _of_case(name: str, steps: dict[str, Sample], rows: Rows) -> dict[str, Any]:
    sample = steps[name]
    kept = pairing.throughput_loss(sample)
    about = [row for row in rows if row.get("kind") == "case" and row["case"] == name]
    share = _share(about)
    # The few steps that the default samples are among the pairs that are left out: their cost comes from elsewhere.
    if name == "default" and share is not None and {"every_step", "unsampled"} <= set(steps):
        kept = pairing.with_rare_steps(sample, share, steps["every_step"], steps["unsampled"])
    every = pairing.throughput_loss(_sample(rows, "cell", name, kept=False))
    on, off = (float(each[0]) for each in sample.means())
    added = pairing.added(sample)
    return {
        "reference": about[0]["reference"] if about else "another server",
        "hooks_out": max((row.get("hooks_out", 0) for row in about), default=0),
        **_estimate("throughput_loss_percent", kept, 4), **_estimate("throughput_loss_percent_of_all_pairs", every, 4),
        **_estimate("added_us", added, 2), "off_us": round(off, 2), "on_us": round(on, 2),
        "pairs": int(sample.pairs.sum()), **_host(name, rows), **_tails(name, rows),
        "steps_recorded": sum(row.get("steps_recorded", 0) for row in about),
        "steps_sampled": sum(row.get("steps_sampled", 0) for row in about),
    }  # fmt: skip


def _sample(rows: Rows, kind: str, name: str, kept: bool = True) -> Sample:
    return Sample.of_rows([row for row in rows if row.get("kind") == kind and row["case"] == name], kept)


def _share(about: Rows) -> float | None:
    """Of the steps that the plugin recorded, how many were sampled."""
    steps = sum(row.get("steps_recorded", 0) for row in about)
    return sum(row["steps_sampled"] for row in about if "steps_sampled" in row) / steps if steps else None


def _host(name: str, rows: Rows) -> dict[str, Any]:
    """Python of a step on the thread that makes it, by the thread's CPU time."""
    sample = _sample(rows, "host_cell", name)
    clocks = [row["thread_clock_us"] for row in rows if row.get("case") == name and "thread_clock_us" in row]
    if not len(sample.pairs) or any(clock is None or clock > CLOCK_STEP_US for clock in clocks):
        return {}
    added = pairing.added(sample)
    return {**_estimate("host_added_us", added, 2), "host_us": round(float(sample.means()[1][0]), 2)}


def _tails(name: str, rows: Rows) -> dict[str, Any]:
    wanted = ("itl_p99", "client_p99")
    found: dict[str, Any] = {}
    for row in rows:
        if row.get("kind") in ("tail", "client") and row["case"] == name:
            found |= {field: value for field, value in row.items() if field.startswith(wanted)}
    return found


def _estimate(name: str, estimate: Estimate, digits: int) -> dict[str, Any]:
    value, interval = estimate.rounded(digits)
    return {name: value, f"{name}_ci95": interval}


def own_us(row: dict[str, Any]) -> dict[str, float]:
    """Microseconds of the plugin's own Python in a step: from the medians of each hook's calls, and from their means."""
    return {
        f"{name}_us": round(
            sum(each["calls"] * each[f"{name}_us"] for each in row["hooks"].values()) / max(row["steps"], 1), 2
        )
        for name in ("median", "mean")
    }
