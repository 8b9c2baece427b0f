"""What the plugin recorded of a span of time, and which of its steps belongs to which forward that a benchmark noted."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightllm_otel.export.recording import BadRecording, read_recording

LATEST_SECONDS = 0.008  # between a note and the step's own time: some microseconds, unless a thread is held up


def recorded(folder: Path, since: float, until: float = np.inf) -> list[tuple[Any, np.ndarray]]:
    """Return ``(step, intervals)`` of rank 0 with a wall time (Unix, seconds) between the two, by their number.

    A recording of an exporter that was started again is another one.
    """
    found = []
    for path in sorted(folder.glob("*/manifest.json")):
        try:
            recording = read_recording(path.parent)
        except BadRecording:
            continue
        found += [each for each in recording.steps(0) if since <= float(each[0]["wall_time"]) < until]
    return sorted(found, key=lambda each: float(each[0]["wall_time"]))


def recorded_steps(folder: Path, since: float, until: float = np.inf) -> list[Any]:
    """Return the steps alone."""
    return [step for step, _ in recorded(folder, since, until)]


def match(earlier: Sequence[float], later: Sequence[float]) -> list[tuple[int, int]]:
    """Pair two sequences of Unix times in seconds. Returns pairs of indices.

    What is later belongs to the last that is earlier, unless that is taken by more than one or long ago. A float of Unix
    seconds is good to a quarter of a microsecond.
    """
    found: dict[int, list[int]] = {}
    for number, seconds in enumerate(later):
        before = bisect.bisect_right(earlier, seconds + 1e-6) - 1
        if before >= 0 and seconds - earlier[before] < LATEST_SECONDS:
            found.setdefault(before, []).append(number)
    return [(before, numbers[0]) for before, numbers in found.items() if len(numbers) == 1]
