"""The parts of the exporter's work, kept apart: one that fails is counted and said once, and ends nothing else."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Optional

from lightllm_otel.guard import log
from lightllm_otel.records.vocabulary import ExporterStage

MOST_LINES = 100
"""Lines of the log in the life of an exporter. Its log may lie in memory, and what fails may fail for ever."""


class Parts:
    """``with parts(stage, subject):`` catches what fails in there. ``errors``: how often, by stage. Usable from any thread.

    Only ``Exception`` is caught, so a signal still ends the exporter. ``strict`` (tests) lets errors through.
    """

    strict = False

    def __init__(self) -> None:
        self.errors: dict[ExporterStage, int] = dict.fromkeys(ExporterStage, 0)
        self._said: set[tuple[ExporterStage, str]] = set()
        self._lock = threading.Lock()

    def __call__(self, stage: ExporterStage, subject: str = "") -> _Part:
        return _Part(self, stage, subject)

    def failed(self, stage: ExporterStage, subject: str, sentence: str) -> None:
        """Count a failure. ``sentence`` goes to the log at the first failure of this ``subject`` only."""
        if self._is_new(stage, subject):
            log.error("%s", sentence)

    def caught(self, stage: ExporterStage, subject: str, error: Exception) -> bool:
        """Count a failure that nobody expected. Return whether it is to be swallowed."""
        what = f"{stage} ({subject})" if subject else str(stage)
        if isinstance(error, OSError):
            self.failed(stage, subject, f"{what} failed: {error}. It is tried again, and everything else goes on")
        elif self._is_new(stage, subject):
            log.error("%s failed: %r. It is tried again, and everything else goes on; please report this",
                      what, error, exc_info=error)  # fmt: skip
        return not self.strict

    def _is_new(self, stage: ExporterStage, subject: str) -> bool:
        with self._lock:
            self.errors[stage] += 1
            if (stage, subject) in self._said or len(self._said) >= MOST_LINES:
                return False
            self._said.add((stage, subject))
            return True


class _Part:
    def __init__(self, parts: Parts, stage: ExporterStage, subject: str) -> None:
        self._parts, self._stage, self._subject = parts, stage, subject

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> bool:
        return isinstance(error, Exception) and self._parts.caught(self._stage, self._subject, error)
