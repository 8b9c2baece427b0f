"""What ``collectives.py`` claims, from its rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from collectives_rows import Rows, percent
from rank import DECODES, PREFILL

from lightllm_otel.records.vocabulary import Operator, Unmatched

SHIFTS = ("transfer_shift_percent", "transfer_shift_percent_with_noise", "transfer_noise_percent")


def summarise(rows: Rows) -> dict[str, Any]:
    """Everything from the rows alone. ``transfer_shift_percent``: of ranks with a GPU each, if there are any."""
    slow = [row for row in rows if row.get("kind") == "slow"]
    groups = {one_gpu: slow_group(own) for one_gpu in (False, True) if (own := of_group(rows, one_gpu))}
    chosen: dict[str, Any] = next((each for each in groups.values() if each["slow_steps"]), {})
    steps = sum(row["steps"] for row in slow)
    named = [100 * row["named_steps"] / row["steps"] for row in slow]
    bandwidth = [row for row in rows if row.get("kind") == "bandwidth" and not row["problem"]]
    return {
        **{name: chosen.get(name) for name in SHIFTS},
        "slow_groups": {"one GPU" if one_gpu else "a GPU each": each for one_gpu, each in groups.items() if each["slow_steps"]},
        "straggler_named_percent": round(100 * sum(row["named_steps"] for row in slow) / steps, 2) if steps else None,
        "straggler_named_percent_worst_pass": round(min(named), 2) if named else None,
        "straggler_named_percent_of_calls": percent(
            sum(row["named_calls"] for row in slow), sum(row.get("sure", row["calls"]) for row in slow)
        ),
        "slow_steps": steps,
        "bus_bandwidth_error_percent": max((abs(row["error_percent"]) for row in bandwidth), default=None),
        "bus_bytes_per_second": [row["exported_bytes_per_second"] for row in bandwidth],
        "shares": shares(rows),
        "leads": {tp: {phase: leader(found) for phase, found in phases.items()} for tp, phases in shares(rows).items()},
        "unmatched": sum(row[reason.value] for row in rows if row.get("kind") == "unmatched" for reason in Unmatched),
        "errors": sum(sum(row["errors"]) for row in rows if row.get("kind") == "rank facts"),
        "dropped": sum(sum(row["dropped"]) for row in rows if row.get("kind") == "rank facts"),
        "problems": [f"tp {row['tp']}: {row['problem']}" for row in rows if row.get("problem")],
    }  # fmt: skip


def of_group(rows: Rows, one_gpu: bool) -> Rows:
    return [row for row in rows if "tp" in row and bool(row.get("one_gpu")) == one_gpu]


def slow_group(rows: Rows) -> dict[str, Any]:
    """Of ranks of one kind: how far a slow one moves transfer, in percent; of the worst pass."""
    slow = [row for row in rows if row.get("kind") == "slow"]
    found = [shift for row in slow if (shift := shift_of(row, rows)) is not None]
    modes = [mode for mode in DECODES if any(row["mode"] == mode for row in slow)]
    beyond = (max(shift["percent"] - shift["noise_percent"], 0.0) for shift in found)
    return {
        # The part beyond what passes without any delay differ by among themselves.
        "transfer_shift_percent": max(beyond, default=None),
        "transfer_shift_percent_with_noise": max((shift["percent"] for shift in found), default=None),
        "transfer_noise_percent": {mode: plain_noise(rows, mode) for mode in modes},
        "transfer_us": {mode: plain_transfer(rows, mode) for mode in modes},
        "slow_steps": sum(row["steps"] for row in slow),
    }


def plain_transfers(rows: Rows, mode: str) -> dict[str, list[float]]:
    """Site → transfer of the passes without a delay; all sites as one where the rows do not tell them apart."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.get("kind") == "plain" and row["mode"] == mode:
            for site, transfer in transfers_of(row).items():
                found.setdefault(site, []).append(transfer)
    return found


def transfers_of(row: dict[str, Any]) -> dict[str, float]:
    """By site, as the exporter's histograms have it: a delay changes of which site's calls it is known what they took."""
    every: dict[str, float | None] = row.get("transfer_us_by_site", {"": row["transfer_us"]})
    return {site: transfer for site, transfer in every.items() if transfer}


def plain_transfer(rows: Rows, mode: str) -> float | None:
    plain = [
        row["transfer_us"] for row in rows if row.get("kind") == "plain" and row["mode"] == mode and row["transfer_us"]
    ]
    return round(float(np.mean(plain)), 3) if plain else None


def plain_noise(rows: Rows, mode: str) -> float | None:
    """By how much the transfer of passes without a delay differs, largest to smallest, in percent of their mean; of the
    worst site.
    """
    return max((noise_of(plain) for plain in plain_transfers(rows, mode).values() if len(plain) > 1), default=None)


def noise_of(plain: Sequence[float]) -> float:
    return round(100 * (max(plain) - min(plain)) / float(np.mean(plain)), 3)


def shift_of(row: dict[str, Any], rows: Rows) -> dict[str, float] | None:
    """How far a slow rank moved the transfer from where it is without one, and what noise there is in that; of the site
    that moved furthest.
    """
    found = []
    plain = plain_transfers(rows, row["mode"])
    for site, transfer in transfers_of(row).items():
        if len(own := plain.get(site, [])) > 1:
            shift = round(100 * abs(transfer / float(np.mean(own)) - 1), 3)
            found.append({"percent": shift, "noise_percent": noise_of(own)})
    return max(found, key=lambda shift: shift["percent"] - shift["noise_percent"], default=None)


def shares(rows: Rows) -> dict[str, dict[str, dict[str, float]]]:
    """tp, and whether its ranks had a GPU each → phase → operator → percent of the step, the largest first."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        if row.get("kind") == "share":
            phase = "prefill" if row["mode"] == PREFILL else "decode"
            group = f"tp{row['tp']}" + (", a GPU each" if row["tp"] > 1 and not row.get("one_gpu") else "")
            found.setdefault(group, {}).setdefault(phase, {})[row["operator"]] = row["percent"]
    return found


def leader(found: dict[str, float]) -> str:
    """The dearest operator; gap is none."""
    return next(name for name in found if name != Operator.GAP.value)
