"""The rows of one benchmark's run: what was asked for, the steps, and the shares of operators."""

from __future__ import annotations

from typing import Any

import numpy as np

from lightllm_otel.tools.analysis.report import report
from lightllm_otel.tools.analysis.runs import Run

Rows = list[dict[str, Any]]


def run_rows(run: Run, problem: str = "") -> Rows:
    """Of one benchmark: what was asked for, and per phase the step and each operator's share with its interval."""
    data = report(run)
    bench = run.bench
    rates = [round(float(each["output_tokens_per_second"]), 2) for each in bench.get("repeats", [])]
    rows: Rows = [
        {
            "kind": "run", "plan": bench.get("plan"), "repeats": len(run.repeats), "records": run.records, "tp": run.ranks,
            "graphs": bench.get("graphs"), "output_tokens_per_second": rates,
            "output_tokens_per_second_mean": round(float(np.mean(rates)), 2) if rates else None,
            "busy_percent": percent(data["pace"]["busy"]), "host_idle_percent": percent(data["pace"]["host"]),
            "hook_percent": [percent(each["hook_share"]) for each in bench.get("repeats", [])],
            "lost_records": sum(each["lost_records"] for each in bench.get("repeats", [])),
            "facts": data["facts"], "notes": [*data["notes"], *notes_of(bench)],
        }
    ]  # fmt: skip
    for phase in data["phases"]:
        step = phase["step"]
        rows.append({
            "kind": "phase", "phase": phase["phase"], "mode": phase["mode"], "steps": step["steps"],
            "sampled": step["sampled"], "step_ms": round(1e3 * step["mean"], 4),
            "step_ms_ci95": [round(1e3 * value, 4) for value in step["interval"]],
            "tokens_per_second": round(step["tokens_per_second"], 1),
            "mfu_percent": percent(phase["utilisation"]["mfu"]), "mbu_percent": percent(phase["utilisation"]["mbu"]),
            "shares": {
                each["operator"]: {
                    "percent": percent(each["share"]), "ci95": [percent(value) for value in each["interval"]],
                    "call_us": round(1e6 * each["seconds_per_call"], 3),
                    "of_peak_percent": percent(each["busy"]), "bound": each["bound"],
                }
                for each in phase["operators"]
            },
        })  # fmt: skip
    return [*rows, *([{"kind": "problem", "problem": problem}] if problem else [])]


def notes_of(bench: dict[str, Any]) -> list[str]:
    return [note for each in bench.get("repeats", []) for note in each["notes"]]


def percent(share: float | None) -> float | None:
    return None if share is None else round(100 * float(share), 3)
