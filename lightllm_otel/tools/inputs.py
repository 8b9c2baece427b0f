"""Inputs of commands: recordings, baselines and model shapes; and their outputs: pages and files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightllm_otel.page import render
from lightllm_otel.records.recording import BadRecording
from lightllm_otel.roofline import shape
from lightllm_otel.roofline.shape import ModelShape
from lightllm_otel.tools.analysis import baseline
from lightllm_otel.tools.analysis.baseline import Side
from lightllm_otel.tools.analysis.runs import Run, load

INCOMPLETE_STATUS = 4  # the printed result is valid, but covers only a part of the recording
PACKAGED = Path(__file__).resolve().parents[1] / "recordings"


def run(name: str) -> Run:
    """Load the recording in this folder, or the one in the package with this name. Raises BadRecording."""
    given = Path(name)
    if not given.exists() and (PACKAGED / name).is_dir():
        return load(PACKAGED / name)
    if not given.exists():
        known = ", ".join(sorted(path.name for path in PACKAGED.glob("*/"))) or "none"
        raise BadRecording(
            f"there is no {name}; pass the folder of a recording, or one that the package contains: {known}"
        )
    return load(given)


def side(name: str) -> Side:
    """Load one side of a comparison: a run, or a saved baseline. Raises BadRecording."""
    path = Path(name)
    return baseline.read(path) if path.is_file() else baseline.side(run(name))


def model(name: str | None) -> ModelShape | None:
    """Return the shape of a model, None for None. Raises UnknownModel."""
    return None if name is None else shape.find(name)


def write_page(given: argparse.Namespace, data: dict[str, Any], title: str) -> list[Path]:
    """Write the page of ``--html`` if it was requested, and return the paths written. Raises BadRecording."""
    if given.html is None:
        return []
    write(given.html, render(data, title))
    return [given.html]


def write(path: Path, text: str) -> None:
    """Write a text file. Raises BadRecording if it cannot be written."""
    try:
        path.write_text(text)
    except OSError as error:
        raise BadRecording(f"{path} cannot be written ({error.strerror}); pass another file") from error


def incomplete(command: str, missing: Iterable[str]) -> int:
    """Print what the recordings lack, one sentence each. Return exit status 0 if nothing is missing, else 4."""
    sentences = list(dict.fromkeys(missing))
    for sentence in sentences:
        print(f"lightllm-otel {command}: {sentence}", file=sys.stderr)
    return INCOMPLETE_STATUS if sentences else 0
