"""What the plugin recorded of a span of time, and which of its steps belongs to which forward that a benchmark noted."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightllm_otel.records.recording import BadRecording, read_recording

FAR_SECONDS = 0.008  # between a note and the step's own time: some microseconds, unless a thread is held up


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


def match(notes: Sequence[float], steps: Sequence[float]) -> list[tuple[int, int]]:
    """Pair two sequences of Unix times in seconds, each by time. Returns pairs of indices, by time.

    Two belong together if each is the other's nearest. Steps are entered milliseconds apart, and noted within one.
    """
    nearest_step = [_nearest(steps, at) for at in notes]
    nearest_note = [_nearest(notes, at) for at in steps]
    return [
        (note, step)
        for note, step in enumerate(nearest_step)
        if step >= 0 and nearest_note[step] == note and abs(steps[step] - notes[note]) < FAR_SECONDS
    ]


def _nearest(times: Sequence[float], at: float) -> int:
    behind = bisect.bisect_left(times, at)
    around = [near for near in (behind - 1, behind) if 0 <= near < len(times)]
    return min(around, key=lambda near: abs(times[near] - at), default=-1)
