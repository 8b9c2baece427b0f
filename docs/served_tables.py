"""The tables of what was measured inside real servers: each LightLLM, model and setting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from results import Measured, measured, result

SETTINGS = {
    "default": "default (1 decode step in 64)",
    "unsampled": "steps that are not sampled",
    "steps": "`LIGHTLLM_OTEL_LEVEL=steps`",
    "off": "live control says `off`",
    "every_step": "every decode step sampled",
    "servers": "two servers in turn, default",
}
NOTHING = "Not measured yet: `benchmarks/cost/served.py`."


def served_cost() -> str:
    """Return what each setting costs, of each LightLLM and model."""
    head = ["LightLLM", "model, batch", "what is on", "tokens per second lost", "99th percentile between tokens",
            "a step without it", "added", "Python added on the model's thread"]  # fmt: skip
    return _table(head, _costs(measured(result("overhead"))))


def _costs(found: list[Measured]) -> Iterator[list[str]]:
    for each in found:
        for shape, settings in each.summary.items() if each.served else ():
            batches = {row["batch"] for row in each.rows if row.get("kind") == "case" and row.get("shape") == shape}
            for name, title in SETTINGS.items():
                if name in settings:
                    model = ", ".join([shape, *map(str, sorted(batches))])
                    yield [each.title(), model, title, *_cost_cells(settings[name])]


def _cost_cells(found: dict[str, Any]) -> list[str]:
    tail, python = found.get("itl_p99_increase_percent"), found.get("host_added_us")
    return [
        _interval(found, "throughput_loss_percent", " %"),
        "–" if tail is None else f"{round(tail, 1) + 0.0:+.1f} %",
        f"{found['off_us']:.0f} µs",
        f"{found['added_us']:+.0f} µs",
        "–" if python is None else _interval(found, "host_added_us", " µs"),
    ]


def served_accuracy() -> str:
    """Return how exact operators are beside CUPTI, of each LightLLM, model and batch."""
    head = ["LightLLM", "model, batch", "error of the median operator", "largest error of a share, points",
            "the same, the plugin without CUPTI", "part of a step that is timed", "a sampled step is longer by"]  # fmt: skip
    return _table(head, _errors(measured(result("accuracy"))))


def _errors(found: list[Measured]) -> Iterator[list[str]]:
    for each in found:
        for case, own in each.summary["by_case"].items() if each.served else ():
            yield [
                each.title(), case.replace(", batch ", ", "), f"{own['median_error_us']:.2f} µs",
                f"{own['max_share_error_points']:.2f}",
                f"{own['median_error_us_without_cupti']:.2f} µs, {own['max_share_error_points_without_cupti']:.2f}",
                f"{own['closure_percent_without_cupti']:.2f} %",
                f"{own['distortion_percent']:.2f} %",
            ]  # fmt: skip


def _table(head: list[str], rows: Iterator[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines]) if lines else NOTHING


def _interval(found: dict[str, Any], name: str, unit: str) -> str:
    low, high = found[f"{name}_ci95"]
    return f"{found[name]:.2f}{unit} ({low:.2f} … {high:.2f})"
