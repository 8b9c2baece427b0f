"""A file in shared memory: the steps of a model process, and what the benchmark wants of it.

The model process adds a row for every step, which costs it less than a microsecond. The benchmark reads the rows while
they are added, and writes the words that say which setting of the plugin (``arms.py``) comes when.
"""

from __future__ import annotations

import enum
import mmap
import os
from pathlib import Path
from typing import Any

NAME = "steps.log"
ROWS = 200_000
WORDS = 64


class Word(enum.IntEnum):
    """The words before the rows, 64 bits each."""

    STEPS = 0  # rows written; stored after the row
    BATCH = 1  # positions are counted while a step has this many requests
    BLOCK = 2  # positions for which a setting holds; 0: ``HOLD`` holds
    PASS = 3  # decides which setting begins
    FIRST = 4  # the two settings, as numbers of ``arms.Arm``; pass 0 begins with this one
    SECOND = 5
    HOLD = 6  # -1: what there is
    CPU = 7  # 1: the CPU time of the thread is taken
    NOW = 8  # the setting that was asked for last
    HOOKS = 9  # hooks of the plugin that were out at most
    PROBLEMS = 10
    PID = 11
    EPOCH = 12  # positions begin anew when it changes


class Column(enum.IntEnum):
    """What is known of a step; times in nanoseconds."""

    AT = 0  # CLOCK_MONOTONIC, when its results were on the host
    BATCH = 1
    POSITION = 2  # of consecutive steps of ``Word.BATCH`` requests; -1: another batch
    ARM = 3
    SERIAL_CPU = 4  # CPU time of the thread while no other step can be launched, without waiting for requests
    REST_CPU = 5  # CPU time of the thread behind that, without waiting for the GPU


class StepLog:
    """The mapped file. The model process creates it; ``words`` and ``cells`` are views of signed 64-bit numbers."""

    def __init__(self, folder: Path, create: bool = False) -> None:
        size = 8 * (WORDS + ROWS * len(Column))
        flags = os.O_RDWR | (os.O_CREAT if create else 0)
        descriptor = os.open(folder / NAME, flags, 0o600)
        try:
            if create:
                os.ftruncate(descriptor, size)
            self._map = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        numbers = memoryview(self._map).cast("q")
        self.words, self.cells = numbers[:WORDS], numbers[WORDS:]

    def add(self, at: int, batch: int, position: int, arm: int) -> int:
        """Append a step. Returns the index of its first cell."""
        number = self.words[Word.STEPS]
        first = number % ROWS * len(Column)
        cells = self.cells
        cells[first], cells[first + 1], cells[first + 2], cells[first + 3] = at, batch, position, arm
        cells[first + 4] = cells[first + 5] = 0
        self.words[Word.STEPS] = number + 1
        return first

    def rows(self, first: int) -> Any:
        """Return the steps from number ``first`` on as an array of shape (steps, columns)."""
        import numpy as np

        numbers = np.frombuffer(self._map, np.int64)[WORDS:].reshape(ROWS, len(Column))
        last = self.words[Word.STEPS]
        if last - first > ROWS:
            raise ValueError(f"{last - first} steps since the last look; only the last {ROWS} are kept")
        return numbers[np.arange(first, last) % ROWS].copy()
