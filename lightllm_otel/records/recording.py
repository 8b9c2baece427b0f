"""Recording of a run on disk: a manifest and, for each rank, the cells of its ring (docs/recording.md)."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from lightllm_otel.guard import log
from lightllm_otel.parts import Parts
from lightllm_otel.records import layout, private
from lightllm_otel.records.vocabulary import ExporterStage

FORMAT = "lightllm-otel recording"
MANIFEST = "manifest.json"


class BadRecording(ValueError):
    """Raised for a folder that is no recording, or that this version cannot read; the message says what to do."""


class RecordingWriter:
    """Writer of a recording in a new folder of ``directory``. Any failure ends the recording, with one log line."""

    def __init__(
        self,
        directory: Path,
        group: str,
        most_bytes: int,
        now: datetime.datetime | None = None,
        parts: Parts | None = None,
    ) -> None:
        self._parts = parts or Parts()
        now = now or datetime.datetime.now(datetime.timezone.utc)
        self.path = directory / f"{now:%Y%m%dT%H%M%SZ}-{group}"
        self._left = most_bytes
        self._open = True
        self._files: dict[int, int] = {}
        try:
            private.make_parents(self.path)
            with contextlib.suppress(FileExistsError):
                self.path.mkdir(0o755)
            os.close(private.open_folder(self.path))
        except OSError as error:
            self._end(f"{directory} cannot be written ({error.strerror}): nothing is recorded; the rest goes on. "
                      "Set LIGHTLLM_OTEL_RECORD to a folder that can")  # fmt: skip

    def describe(self, facts: dict[int, dict[str, Any]]) -> None:
        """Write the manifest: format, version, and each rank's facts."""
        if not self._open:
            return
        manifest = {
            "format": FORMAT,
            "version": layout.VERSION,
            "cell_bytes": layout.CELL_BYTES,
            "ranks": {str(rank): what for rank, what in sorted(facts.items())},
        }
        try:
            private.write(self.path / MANIFEST, json.dumps(manifest, indent=1).encode() + b"\n", mode=0o644)
        except OSError as error:
            self._end(f"{self.path} can no longer be written ({error.strerror}): the recording ends here")

    def append(self, rank: int, cells: np.ndarray) -> None:
        """Append complete steps (uint8, shape (n, 16))."""
        if not self._open or not len(cells):
            return
        if cells.nbytes > self._left:
            self._open = False  # which is no failure
            log.error(
                "%s has reached its size: the recording ends here. LIGHTLLM_OTEL_RECORD_MAX_MIB sets the size",
                self.path,
            )
            return
        try:
            if rank not in self._files:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
                self._files[rank] = private.open_file(self.path / f"rank-{rank}.records", flags)
                os.fchmod(self._files[rank], 0o644)
            os.write(self._files[rank], cells.tobytes())
            self._left -= cells.nbytes
        except OSError as error:
            self._end(f"{self.path} can no longer be written ({error.strerror}): the recording ends here")

    def _end(self, reason: str) -> None:
        self._open = False
        self._parts.failed(ExporterStage.RECORDING, "writing", reason)

    def close(self) -> None:
        """Close the files."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()
        self._open = False


@dataclasses.dataclass(frozen=True)
class Recording:
    """Recording of a run. ``facts`` and ``cells`` are by rank; ``torn`` has a sentence for each damaged file.

    ``cells``: complete steps, uint8, shape (n, 16).
    """

    path: Path
    facts: dict[int, dict[str, Any]]
    cells: dict[int, np.ndarray]
    torn: tuple[str, ...] = ()

    def steps(self, rank: int) -> list[tuple[np.void, np.ndarray]]:
        """Return ``(step, intervals)`` pairs of one rank, of dtypes ``STEP`` and ``INTERVAL``."""
        return layout.steps_in(self.cells[rank])


def read_recording(path: Path) -> Recording:
    """Read a recording, up to the last complete step of each rank. Raises BadRecording."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except OSError as error:
        raise BadRecording(
            f"{path} is not a recording: it has no {MANIFEST}. Give the folder that LIGHTLLM_OTEL_RECORD made, "
            "with a date in its name"
        ) from error
    except ValueError as error:
        raise BadRecording(f"{path / MANIFEST} is damaged ({error}); record the run again") from error
    if manifest.get("format") != FORMAT or manifest.get("version") != layout.VERSION:
        raise BadRecording(
            f"{path} has format {manifest.get('format')!r} {manifest.get('version')}, this version reads {FORMAT!r} "
            f"{layout.VERSION}; use the lightllm-otel that wrote it"
        )
    cells, torn = {}, []
    for rank in sorted(map(int, manifest["ranks"])):
        file = path / f"rank-{rank}.records"
        try:
            content = np.fromfile(file, np.uint8) if file.exists() else np.zeros(0, np.uint8)
        except OSError as error:
            raise BadRecording(f"{file} cannot be read ({error.strerror}); record the run again") from error
        whole = content[: len(content) // layout.CELL_BYTES * layout.CELL_BYTES].reshape(-1, layout.CELL_BYTES)
        _, used = layout.starts_in(whole)
        cells[rank] = whole[:used]
        if used * layout.CELL_BYTES != len(content):
            torn.append(f"{file} {_what_is_left_out(whole, used, len(content) - used * layout.CELL_BYTES)}")
    return Recording(path, {int(rank): facts for rank, facts in manifest["ranks"].items()}, cells, tuple(torn))


def _what_is_left_out(cells: np.ndarray, used: int, lost: int) -> str:
    """Return the end of a sentence about the last bytes of a file, which are not complete steps.

    A crash leaves the beginning of one step; anything else is damage.
    """
    begins = layout.steps_begin(cells[used:])
    if not begins[1:].any() and begins[:1].all():
        return (
            f"ends in the middle of a step (the server was stopped while writing); its last {lost} bytes are left out"
        )
    place = used * layout.CELL_BYTES
    return f"is damaged at byte {place}, where no whole step begins; its last {lost} bytes are left out; copy or record it again"
