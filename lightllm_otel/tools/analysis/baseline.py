"""Baseline file of a good run (``compare --save-baseline``), for later comparisons and for servers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from lightllm_otel.exporter.baseline import RUN_FORMAT
from lightllm_otel.records.recording import BadRecording
from lightllm_otel.tools.analysis.runs import Run
from lightllm_otel.tools.analysis.strata import Table, tabulate

FORMAT, VERSION = RUN_FORMAT, 1


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a comparison: a table for each repeat. ``expectation``: for servers, as exporter/baseline.py keeps it."""

    name: str
    facts: dict[str, Any]
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()
    expectation: dict[str, Any] | None = None


def side(run: Run) -> Side:
    return Side(run.name, run.facts, tuple(tabulate(repeat) for repeat in run.repeats), run.notes)


def save(path: Path, side: Side) -> None:
    """Write a baseline file. Raises OSError."""
    content = {
        "format": FORMAT, "version": VERSION, "name": side.name, "facts": side.facts, "notes": side.notes,
        "repeats": [table.as_json() for table in side.tables], "expectation": side.expectation,
    }  # fmt: skip
    path.write_text(json.dumps(content) + "\n")


def read(path: Path) -> Side:
    """Read a baseline file. Raises BadRecording."""
    try:
        content = json.loads(path.read_text())
        if content.get("format") != FORMAT or content.get("version") != VERSION:
            raise BadRecording(
                f"{path} has format {content.get('format')!r} {content.get('version')}, this version reads {FORMAT!r} "
                f"{VERSION}; save the baseline again"
            )
        _check(content)
        tables = tuple(Table.from_json(table) for table in content["repeats"])
        return Side(
            content["name"], content["facts"], tables, tuple(content.get("notes", ())), content.get("expectation")
        )
    except OSError as error:
        raise BadRecording(
            f"{path} cannot be read ({error.strerror}); give a recording's folder or a baseline"
        ) from error
    except BadRecording:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise BadRecording(
            f"{path} is no baseline of lightllm-otel, or is damaged; make one with compare --save-baseline"
        ) from error


def _check(content: dict[str, Any]) -> None:
    """Check what comparisons rely on in a rank's facts. Raises ValueError and KeyError."""
    facts, notes = content["facts"], content.get("notes", [])  # the first versions kept none
    ranks = facts.get("tp", 1)
    sound = isinstance(content["name"], str) and isinstance(ranks, int) and ranks > 0 and len(content["repeats"]) > 0
    if not sound or not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise ValueError("what it says of its run cannot be")
