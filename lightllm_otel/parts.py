"""Parts of the exporter's work, isolated from each other: an error is counted and logged once, and ends nothing else."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Optional

from lightllm_otel.guard import log
from lightllm_otel.records.vocabulary import ExporterStage

MOST_LINES = 100
"""Most log lines of one exporter. Its log may be kept in memory, and an error may repeat for ever."""


class Parts:
    """Source of context managers that catch errors: ``with parts(stage, subject):``. Usable from any thread.

    ``errors``: counts by stage. Only ``Exception`` is caught, so a signal still ends the exporter. ``strict`` (tests) lets
    errors through.
    """

    strict = False

    def __init__(self) -> None:
        self.errors: dict[ExporterStage, int] = dict.fromkeys(ExporterStage, 0)
        self._said: set[tuple[ExporterStage, str]] = set()
        self._lock = threading.Lock()

    def __call__(self, stage: ExporterStage, subject: str = "") -> _Part:
        return _Part(self, stage, subject)

    def failed(self, stage: ExporterStage, subject: str, sentence: str) -> None:
        """Count an error. ``sentence`` is logged only at the first error of this ``subject``."""
        if self._is_new(stage, subject):
            log.error("%s", sentence)

    def caught(self, stage: ExporterStage, subject: str, error: Exception) -> bool:
        """Count an unexpected error. Return whether it is swallowed."""
        what = f"{stage} ({subject})" if subject else str(stage)
        if isinstance(error, OSError):
            self.failed(stage, subject, f"{what} failed: {error}. It is retried, and everything else goes on")
        elif self._is_new(stage, subject):
            log.error("%s failed: %r. It is retried, and everything else goes on; please report this",
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
