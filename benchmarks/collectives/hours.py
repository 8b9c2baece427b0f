"""An hour at the rates that one build of a model was measured at, then an hour at another's, as an exporter would show them.

What was measured are some seconds of each: they are *extended*, as if nothing but the rates changed. The server has a
full batch all the time: one prefill, then so many decode steps. What is expected of it is what the first build measured.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import promtool
from days import Days

HOUR = 3600
GRID = 30
DECODES = 1024  # steps after each prefill
SAMPLED_EVERY = 64


@dataclasses.dataclass(frozen=True)
class Phase:
    """Of one step: ``seconds`` of each operator on a rank, and of the layers' all_reduce calls what they moved and took."""

    seconds: dict[str, float]
    calls: int
    transfer: float
    wait: Sequence[float]
    payload: float
    bus_bytes: float

    @property
    def step(self) -> float:
        return sum(self.seconds.values())


@dataclasses.dataclass(frozen=True)
class Rates:
    """``phases``: prefill and decode; ``ranks``: of the group."""

    phases: dict[str, Phase]
    ranks: int

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]]) -> Rates | None:
        """From variants.py's rows of one build; None where a phase has none."""
        phases: dict[str, Phase] = {}
        for row in rows:
            if row.get("kind") != "moved" or not row["transfer_us"] or not row["step_us"]:
                continue
            shares = {each["operator"]: each["percent"] for each in rows
                      if each.get("kind") == "share" and each["pass"] == row["pass"]}  # fmt: skip
            step, transfer = 1e-6 * row["step_us"], 1e-6 * row["transfer_us"]
            phases["prefill" if row["mode"] == "prefill" else "decode"] = Phase(
                {operator: step * percent / 100 for operator, percent in shares.items()}, row["calls_of_a_step"], transfer,
                [1e-6 * each for each in row["wait_us"]], row["payload_bytes"] or 0,
                (row["bus_bytes_per_second"] or 0) * transfer,
            )  # fmt: skip
        return cls(phases, len(phases["decode"].wait)) if {"prefill", "decode"} <= set(phases) else None

    @property
    def cycle(self) -> float:
        """Seconds of a prefill and the decode steps after it."""
        return self.phases["prefill"].step + DECODES * self.phases["decode"].step


def series(before: Rates, after: Rates, peak: float, batch: int = 64) -> Days:
    """``peak``: bytes per second of the link between the GPUs, both directions together, as NVML has it; 0: not shown."""
    times = np.arange(2 * HOUR // GRID) * float(GRID)
    second = times >= HOUR
    columns: dict[str, np.ndarray] = {}

    def grow(name: str, per_cycle: Sequence[float]) -> None:
        rates = np.where(second, per_cycle[1] / after.cycle, per_cycle[0] / before.cycle)
        columns[name] = np.cumsum(rates * GRID)

    for phase, mode in (("prefill", "eager"), ("decode", "graph")):
        both = [rates.phases[phase] for rates in (before, after)]
        steps = 1 if phase == "prefill" else DECODES
        sampled = steps if phase == "prefill" else steps / SAMPLED_EVERY
        ranks, at = before.ranks, f'phase="{phase}"'
        for operator, expected in both[0].seconds.items():
            here = f'{{operator="{operator}",{at}}}'
            measured = [each.seconds.get(operator, 0.0) * sampled * ranks for each in both]
            grow(f"lightllm_gpu_operator_compared_seconds_total{here}", measured)
            grow(f"lightllm_gpu_operator_expected_seconds_total{here}", [expected * sampled * ranks] * 2)
        step = f'{{{at},mode="{mode}"}}'
        grow(f"lightllm_gpu_step_duration_seconds_sum{step}", [each.step * steps * ranks for each in both])
        grow(f"lightllm_gpu_step_duration_seconds_count{step}", [float(steps * ranks)] * 2)
        grow(f"lightllm_gpu_step_requests_total{{{at}}}", [float(steps * batch)] * 2)
        calls, site = [each.calls * sampled for each in both], f'{{site="attention",{at}}}'
        name = "lightllm_gpu_collective_"
        grow(f"{name}transfer_seconds_sum{site}", [n * each.transfer for n, each in zip(calls, both)])
        grow(f"{name}transfer_seconds_count{site}", calls)
        grow(f"{name}wait_seconds_sum{site}", [n * sum(each.wait) for n, each in zip(calls, both)])
        grow(f"{name}wait_seconds_count{site}", [n * ranks for n in calls])
        grow(f"{name}bus_bytes_total{site}", [n * each.bus_bytes for n, each in zip(calls, both)])
        grow(f'{name}payload_bytes_total{{operator="all_reduce",site="attention",{at},implementation="nccl"}}',
             [n * each.payload for n, each in zip(calls, both)])  # fmt: skip
    grow("lightllm_otel_steps_sampled_total", [before.ranks * (1 + DECODES / SAMPLED_EVERY)] * 2)
    if peak:
        columns["lightllm_gpu_peak_link_bytes_per_second"] = np.full(len(times), peak)
    columns["lightllm_otel_data_age_seconds"] = np.full(len(times), 0.5)
    return Days(times, [], columns, GRID)


def evaluate(before: Rates, after: Rates, peak: float) -> dict[str, Any]:
    """Which alerts fired when, by the rules in grafana/rules as they are."""
    made = series(before, after, peak)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hours.yml"
        promtool.write(path, {"node": made}, GRID, np.arange(GRID, 2 * HOUR, GRID).tolist())
        fired = promtool.run(path)
    first: dict[tuple[str, str, str, str], float] = {}
    for at, labels in sorted(fired, key=lambda each: each[0]):
        key = tuple(labels.get(name, "") for name in ("alertname", "severity", "operator", "phase"))
        first.setdefault((key[0], key[1], key[2], key[3]), at)
    listed = [
        {"alert": name, "severity": severity, "operator": operator, "phase": phase,
         "minutes_after_the_change": round((at - HOUR) / 60, 2)}
        for (name, severity, operator, phase), at in sorted(first.items(), key=lambda each: each[1])
    ]  # fmt: skip
    return {
        "extended": "an hour at the first variant's rates, then an hour at the second's; some seconds of each were measured",
        "expected": "what the first variant measured", "decode_steps_after_a_prefill": DECODES,
        "fired": [each for each in listed if each["minutes_after_the_change"] >= 0],
        "fired_before_the_change": [each for each in listed if each["minutes_after_the_change"] < 0],
        "tokens_slower": round(after.cycle / before.cycle, 4), "promtool": promtool.version(),
    }  # fmt: skip
