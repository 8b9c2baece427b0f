"""Reader of the notes that all processes of a server write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightllm_otel.parts import Parts
from lightllm_otel.records import notes, private
from lightllm_otel.records.folder import is_locked, remove_if_dead
from lightllm_otel.records.notes import NotesReader
from lightllm_otel.records.vocabulary import ExporterStage

READS_OF_THE_DEAD = 50  # every so many polls, files of processes that have ended are removed


class NotesFolder:
    """Notes of all processes of the server. ``lost`` counts notes that were overwritten before they were read."""

    def __init__(self, folder: Path, parts: Parts) -> None:
        self.lost = 0
        self._folder = folder
        self._parts = parts
        self._readers: dict[Path, NotesReader | None] = {}
        self._reads = 0

    def read(self) -> list[Any]:
        """Return the notes since the last call."""
        found: list[Any] = []
        self._reads += 1
        tidy = self._reads % READS_OF_THE_DEAD == 0
        for path in sorted(self._folder.glob(notes.PATTERN)):
            with self._parts(ExporterStage.NOTES, path.name):
                found += self._read(path, tidy)
        return found

    def _read(self, path: Path, tidy: bool) -> list[Any]:
        if path not in self._readers:
            self._readers[path] = self._reader(path)
        reader = self._readers[path]
        if reader is None:
            return []
        over = tidy and not is_locked(path)  # must be asked before the last notes are read
        lost = reader.lost
        found = reader.read()
        self.lost += reader.lost - lost
        if over:  # each HTTP worker has a file of its own, and workers are replaced
            remove_if_dead(path)
            del self._readers[path]
            reader.close()
        return found

    def _reader(self, path: Path) -> NotesReader | None:
        try:
            return NotesReader(path)
        except (ValueError, private.NotOurs) as error:
            self._parts.failed(ExporterStage.NOTES, path.name, str(error))
            return None
