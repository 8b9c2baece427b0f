"""The notes of every process of a server, read by its exporter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightllm_otel.parts import Parts
from lightllm_otel.records import notes, private
from lightllm_otel.records.folder import is_locked, remove_if_dead
from lightllm_otel.records.notes import NotesReader
from lightllm_otel.records.vocabulary import ExporterStage

READS_OF_THE_DEAD = 50  # polls after which files of processes that are gone are removed


class NotesFolder:
    """Reads the notes of every process of the server. ``lost``: how often one was quicker than we are."""

    def __init__(self, folder: Path, parts: Parts) -> None:
        self.lost = 0
        self._folder = folder
        self._parts = parts
        self._readers: dict[Path, NotesReader | None] = {}
        self._reads = 0

    def read(self) -> list[Any]:
        """Return what all of them have noted since the last call."""
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
        over = tidy and not is_locked(path)  # before its last notes are read
        lost = reader.lost
        found = reader.read()
        self.lost += reader.lost - lost
        if over:  # HTTP workers come and go, each with a file of its own
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
