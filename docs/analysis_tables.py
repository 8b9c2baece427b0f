"""Shares of operators in real runs, and whether comparisons keep what they state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from results import RESULTS, ROOT, result

ANALYSED = {
    ("static_new", "prefill"): "July 2025, prefill",
    ("static_new", "decode"): "July 2025, decode",
    ("served_new", "decode"): "July 2025, served, decode",
    ("static_old", "decode"): "0.0.1, decode",
    ("tp2", "decode"): "July 2025, TP 2 on one GPU by sockets, decode",
}


def analysis() -> str:
    """Shares of real runs with their intervals, and whether comparisons keep what they state."""
    if not (RESULTS / "analysis.json").exists():
        return "Not measured yet: `benchmarks/analyses/analysis.py`."
    content = result("analysis")
    summary = content["summary"]
    found = {
        name: summary["shares"][part][phase]
        for (part, phase), name in ANALYSED.items()
        if phase in summary["shares"].get(part, {})
    }
    order = sorted(
        {name for shares in found.values() for name in shares},
        key=lambda name: -max(shares.get(name, [0.0])[0] for shares in found.values()),
    )
    heads = [_head(name, part, content["rows"]) for (part, _), name in ANALYSED.items() if name in found]
    rows = [f"| {content['gpu'].get('name', 'GPU')}: share of the step, % | " + " | ".join(heads) + " |"]
    rows.append("|---" * (len(found) + 1) + "|")
    for name in order:
        shares = [each.get(name) for each in found.values()]
        cells = [f"{each[0]:.1f} ({each[1]:.1f} … {each[2]:.1f})" if each else "–" for each in shares]
        rows.append(f"| `{name}` | " + " | ".join(cells) + " |")
    claims = list(_compared(summary))
    if claims:
        rows += ["", "| | aim | found | |", "|---|---|---|---|"]
        rows += [f"| {name} | {aim} | {value} | {'met' if met else '**missed**'} |" for name, aim, value, met in claims]
    if (ROOT / "docs" / "example-report.html").exists():
        rows += ["", "[The report on the first two columns](example-report.html)"]
    return "\n".join(rows)


def _head(name: str, part: str, rows: list[dict[str, Any]]) -> str:
    """With how often and how long it was run."""
    run = next(row for row in rows if row.get("part") == part and row.get("kind") == "run")
    return f"{name} ({run['repeats']} × {run['plan']['output_len']} out)"


def _compared(summary: dict[str, Any]) -> Iterator[tuple[str, str, str, bool]]:
    """What was to be kept or found, and whether it was; only what has been measured."""
    equal, stated = summary["aa_significant_percent"], summary["aa_stated_error_percent"]
    if equal is not None:
        name = f"5 repeats against 5 equal ones, {summary['aa_splits']} random splits: some operator significant, %"
        yield name, f"at most {stated:g}", f"{equal:g}", equal <= stated
    for percent, phases in summary["slowed"].items():
        for phase, each in phases.items():
            ends = " … ".join(f"{value:+.2f}" for value in each["ci95"])
            said = f"{each['estimate_percent']:+.2f} ({ends})" + ("" if each["found"] else ", not sure")
            injected = f"{each['injected_percent']:+.2f}"
            yield (
                f"`ffn` slowed by {percent} %, {phase}: estimate, %",
                f"found; {injected} was put in",
                said,
                each["found"],
            )
    for command, most in (("report", 2), ("compare", 4)):
        seconds = summary[f"seconds_{command}_1m"]
        if seconds is not None:
            yield f"`{command}` of a million records, s", f"below {most}", f"{seconds:.2f}", seconds < most
