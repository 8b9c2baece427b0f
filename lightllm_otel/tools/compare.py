"""``lightllm-otel compare A B [C …]``: show how much slower or faster each operator is than in A, with significance."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightllm_otel.records.recording import BadRecording
from lightllm_otel.roofline.shape import UnknownModel
from lightllm_otel.tools import inputs
from lightllm_otel.tools.analysis import baseline, gates, learned
from lightllm_otel.tools.analysis.baseline import Side
from lightllm_otel.tools.analysis.compare import ERROR, LEAST_EFFECT, CannotCompare, Comparison, OperatorChange
from lightllm_otel.tools.analysis.compare import compare as compare_sides
from lightllm_otel.tools.repeats import compare_repeats
from lightllm_otel.tools.table import table
from lightllm_otel.tools.units import duration, interval, percent, signed

GATE_STATUS = 3  # a condition of --fail-if is met; status 1 means that the comparison failed
VERSION = 1
_HEADS = ["", "", "before", "now", "change", "95 %", "theory", "p (Holm)", "detectable", "verdict"]


def compare(given: argparse.Namespace) -> int:
    """Compare runs with the first one. Return exit status 0, or:

    1, with one sentence, if they cannot be compared; 3 if a condition of ``--fail-if`` is met; else 4, with a sentence, if a part
    of a recording is missing. So a gate never passes on an incomplete recording.
    """
    try:
        _check(given)
        if given.repeats:
            return compare_repeats(given.runs, given.json)
        conditions = [gates.parse(text) for text in given.fail_if]
        shape = inputs.model(given.model)
        first, *others = sides = [inputs.side(name) for name in given.runs]
        saved = [] if given.save_baseline is None else [_save(given, first)]
        comparisons = [compare_sides(first, other, shape) for other in others]
        met = [
            said for each in comparisons for condition in conditions
            if (said := gates.met(condition, each.rows, each.lacking))
        ]  # fmt: skip
        data = as_json(first, comparisons, met)
        pages = inputs.write_page(given, data, f"{first.name} · lightllm-otel compare")
    except (BadRecording, CannotCompare, gates.BadCondition, UnknownModel) as problem:
        print(f"lightllm-otel compare: {problem}", file=sys.stderr)
        return 1
    written = [*saved, *(f"wrote {path}" for path in pages)]
    parts = [*(render(each) for each in comparisons), *(["\n".join(written)] if written else [])]
    print(json.dumps({**data, "saved": saved}, indent=1) if given.json else "\n\n".join(parts))
    for sentence in met:
        print(f"lightllm-otel compare: {sentence}", file=sys.stderr)
    missing = inputs.incomplete("compare", (note for side in sides for note in side.notes))
    return GATE_STATUS if met else missing


def _check(given: argparse.Namespace) -> None:
    """Raise CannotCompare for options that would have no effect."""
    if given.repeats:
        options = {
            "--fail-if": given.fail_if, "--save-baseline": given.save_baseline, "--html": given.html,
            "--model": given.model,
        }  # fmt: skip
        foreign = [name for name, value in options.items() if value]
        if foreign:
            raise CannotCompare(f"remove {' and '.join(foreign)}, or --repeats, which compares no run with another")
        return
    if len(given.runs) > 1:
        return
    if given.fail_if:
        raise CannotCompare("--fail-if needs a second run to compare with; pass two runs or more")
    if given.save_baseline is None:
        raise CannotCompare("pass two runs or more, or one run with --save-baseline FILE")
    if given.html:
        raise CannotCompare("--html needs a second run to compare with; pass two runs or more")


def _save(given: argparse.Namespace, first: Side) -> str:
    """Save the first run as a baseline, and return a sentence about it. Raises BadRecording."""
    path, said = given.save_baseline, "for comparisons only"
    if not Path(given.runs[0]).is_file():
        run = inputs.run(given.runs[0])
        try:
            first = dataclasses.replace(first, expectation=learned.described(run, learned.learn(run)))
        except BadRecording as problem:
            said = f"for comparisons only: {problem}"
    try:
        baseline.save(path, first)
    except OSError as error:
        raise BadRecording(f"{path} cannot be written ({error.strerror}); pass another file") from error
    if first.expectation is not None:
        said = f"for comparisons, and for servers with LIGHTLLM_OTEL_BASELINE={path}, whose operators are then compared with it"
    return f"wrote {path}, {said}"


def as_json(first: Side, comparisons: list[Comparison], met: list[str]) -> dict[str, Any]:
    """Return the comparisons as JSON values; times in seconds. ``met``: sentences of the conditions that are met."""
    return {
        "kind": "compare",
        "version": VERSION,
        "error": ERROR,
        "least_effect": LEAST_EFFECT,
        "first": _side(first),
        "comparisons": [
            {
                "second": _side(each.second),
                "notes": each.notes,
                "rows": [
                    {**_without_difference(row), "change": row.change, "speed_up": row.first / row.second,
                     "verdict": row.verdict}
                    for row in each.rows
                ],
            }
            for each in comparisons
        ],
        "failed": met,
    }  # fmt: skip


def _without_difference(row: OperatorChange) -> dict[str, Any]:
    """Return the row as JSON values, without the difference, which the other fields contain."""
    return {name: value for name, value in dataclasses.asdict(row).items() if name != "difference"}


def _side(side: Side) -> dict[str, Any]:
    kept = {fact: side.facts.get(fact) for fact in ("model", "gpu_name", "tp", "dtype", "lightllm", "torch", "cuda")}
    return {"name": side.name, "repeats": len(side.tables), "facts": kept}


def render(comparison: Comparison) -> str:
    """Return one comparison as text."""
    first, second = comparison.first, comparison.second
    lines = [
        f"{second.name} against {first.name}: {len(second.tables)} and {len(first.tables)} repeats; seconds per step of one "
        "rank, at equal batch and context",
        *(f"note: {note}" for note in comparison.notes),
        "",
        *_table(comparison.rows),
    ]
    return "\n".join(lines)


def _table(rows: Iterable[OperatorChange]) -> list[str]:
    return table([_HEADS, *map(_cells, rows)], "<<>>>>>>><", (14, 18, 8, 8, 8, 17, 8, 8, 10))


def _cells(row: OperatorChange) -> list[str]:
    p = "–" if row.p is None else "<0.001" if row.p < 0.001 else f"{row.p:.3f}"
    theory = "–" if row.expected is None else signed(row.expected - 1)
    return [
        f"  {row.operator}", f"{row.phase} · {row.mode}", duration(row.first), duration(row.second), signed(row.change),
        interval(row.interval), theory, p, percent(row.detectable), row.verdict,
    ]  # fmt: skip
