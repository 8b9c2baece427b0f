"""How far a long command is: a line that moves on a terminal, a line per step elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TextIO

_WIDTH = 24


class Progress:
    def __init__(self, total: int, stream: TextIO = sys.stderr) -> None:
        self._total, self._done, self._spent = total, 0, 0.0
        self._stream = stream
        self._moves = stream.isatty()

    def __enter__(self) -> Progress:
        self._show("")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._moves:
            self._stream.write("\n")

    def step(self, words: str, seconds: float) -> None:
        self._done += 1
        self._spent += seconds
        left = self._spent / self._done * (self._total - self._done)
        self._show(words + (f", about {left:.0f} s left" if left else ""))

    def note(self, words: str) -> None:
        self._stream.write(("\n" if self._moves else "") + f"note: {words}\n")

    def _show(self, words: str) -> None:
        filled = round(_WIDTH * self._done / self._total)
        bar = "█" * filled + "·" * (_WIDTH - filled)
        line = f"{bar} {self._done}/{self._total} {words}"
        self._stream.write(f"\r\033[K{line}" if self._moves else f"{line}\n")
        self._stream.flush()
