"""What ``analysis.py`` claims, from its rows alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from analysis_batches import BENCHES
from run_rows import Rows, percent

from lightllm_otel.records.vocabulary import Operator, Phase


def summarise(rows: Rows) -> dict[str, Any]:
    """Everything from the rows alone."""
    runs = {row["part"]: row for row in rows if row["kind"] == "run" and row["part"] in BENCHES}
    splits = next((row for row in rows if row["kind"] == "splits"), None)
    machine = next((row for row in rows if row["kind"] == "machine"), None)
    return {
        "shares": shares(rows),
        "leads": {part: {phase: leader(found) for phase, found in phases.items()} for part, phases in shares(rows).items()},
        "output_tokens_per_second": {part: row["output_tokens_per_second_mean"] for part, row in runs.items()},
        "repeats": {part: row["repeats"] for part, row in runs.items()},
        "step_ms": {part: _of_phases(part, rows, "step_ms") for part in runs},
        "mfu_percent": {part: _of_phases(part, rows, "mfu_percent") for part in runs},
        "mbu_percent": {part: _of_phases(part, rows, "mbu_percent") for part in runs},
        "host_idle_percent": {part: row["host_idle_percent"] for part, row in runs.items()},
        "decode_old_over_new": {
            how: ratio for how in ("static", "served") if (ratio := _decode_ratio(how, rows)) is not None
        },
        "aa_significant_percent": percent(splits["significant"] / splits["splits"]) if splits else None,
        "aa_verdict_percent": percent(splits["verdict"] / splits["splits"]) if splits else None,
        "aa_stated_error_percent": splits["stated_error_percent"] if splits else None,
        "aa_splits": splits["splits"] if splits else None,
        "slowed": slowed(rows),
        "seconds_report_1m": _median(rows, "report"),
        "seconds_compare_1m": _median(rows, "compare"),
        "machine": {name: value for name, value in machine.items() if name not in ("kind", "part")} if machine else None,
        "lost_records": sum(row["lost_records"] for row in runs.values()),
        "problems": [f"{row['part']}: {row['problem']}" for row in rows if row["kind"] == "problem"],
    }  # fmt: skip


def shares(rows: Rows) -> dict[str, dict[str, dict[str, list[float]]]]:
    """part → phase → operator → percent of the step, and its 95 % interval's ends; the largest first."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for row in rows:
        if row["kind"] == "phase" and row["shares"]:
            of_part = found.setdefault(row["part"], {})
            if row["phase"] in of_part:  # an eager step among those in graphs: the larger number of steps counts
                continue
            of_part[row["phase"]] = {
                name: [each["percent"], *each["ci95"]] for name, each in _most_steps(row, rows)["shares"].items()
            }
    return found


def _most_steps(row: dict[str, Any], rows: Rows) -> dict[str, Any]:
    alike = [
        each for each in rows
        if each["kind"] == "phase" and (each["part"], each["phase"]) == (row["part"], row["phase"]) and each["shares"]
    ]  # fmt: skip
    return max(alike, key=lambda each: int(each["sampled"]))


def leader(found: dict[str, list[float]]) -> str:
    """The dearest operator; gap is none."""
    return next((name for name in found if name != Operator.GAP.value), Operator.GAP.value)


def _of_phases(part: str, rows: Rows, name: str) -> dict[str, Any]:
    return {
        f"{row['phase']} {row['mode']}": row[name] for row in rows if row["kind"] == "phase" and row["part"] == part
    }


def _decode_ratio(how: str, rows: Rows) -> float | None:
    """How much longer a decode step of the old version is."""
    steps = []
    for version in ("old", "new"):
        found = [
            row for row in rows
            if row["kind"] == "phase" and row["part"] == f"{how}_{version}" and row["phase"] == Phase.DECODE.value
        ]  # fmt: skip
        if not found:
            return None
        steps.append(max(found, key=lambda row: int(row["steps"]))["step_ms"])
    return round(steps[0] / steps[1], 3)


def slowed(rows: Rows) -> dict[str, dict[str, Any]]:
    """percent → phase → whether it was found, and what was estimated."""
    found: dict[str, dict[str, Any]] = {}
    kept = ("found", "injected_percent", "estimate_percent", "ci95", "p", "detectable_percent", "others")
    for row in rows:
        if row["kind"] == "slowed":
            found.setdefault(str(row["percent"]), {})[row["phase"]] = {name: row[name] for name in kept}
    return found


def _median(rows: Rows, command: str) -> float | None:
    """Of the process's own seconds: other processes' are not ours."""
    seconds = [row["cpu_seconds"] for row in rows if row["kind"] == "speed" and row["command"] == command]
    return round(float(np.median(seconds)), 3) if seconds else None
