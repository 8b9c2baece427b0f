"""Notes: short JSON messages from a server process to its exporter, in a file beside the rings.

The requests of a step and the events of a request have no fixed size, so they do not fit into the cells of a ring. A notes
file is a header and a ring of bytes; a note is its length and JSON. A writer never waits: notes that are not read in time are
overwritten. The reader stores its position in the file, so that its successor continues there.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import struct
import threading
from pathlib import Path
from typing import Any

from lightllm_otel.records import private
from lightllm_otel.records.folder import NOTES_PATTERN

PATTERN = NOTES_PATTERN
BYTES = 1 << 20
_MAGIC = b"LLMNOTE1"
_HEADER = struct.Struct("<8sIIQ")  # magic, pid, reserved, capacity
_DATA_AT = 64
# Words of 8 bytes, which a store changes at once: ``struct.pack_into`` would set their bytes to 0 first.
_WRITTEN, _READ, _BEGUN = 4, 5, 6
_LENGTH = struct.Struct("<I")


class NotesWriter:
    """Writer of one notes file.

    Its lock shows that the process is alive. Raises OSError if the file system is full, and NotOurs.
    """

    def __init__(self, path: Path, capacity: int = BYTES) -> None:
        size = _DATA_AT + capacity
        new = private.NewFile(path)
        self._descriptor = new.descriptor
        try:
            os.posix_fallocate(self._descriptor, 0, size)
            self._map = mmap.mmap(self._descriptor, size)
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _HEADER.pack_into(self._map, 0, _MAGIC, os.getpid(), 0, capacity)
            new.name()
        except BaseException:
            new.discard()
            raise
        self._words = _words(self._map)
        self.path = path
        self._capacity = capacity
        self._written = 0
        self._lock = threading.Lock()

    def write(self, note: Any) -> None:
        """Append a note that JSON can represent. A note larger than a quarter of the ring is discarded."""
        text = json.dumps(note, separators=(",", ":")).encode()
        if len(text) > self._capacity // 4:
            return
        whole = _LENGTH.pack(len(text)) + text
        with self._lock:
            at = self._written % self._capacity
            first = min(len(whole), self._capacity - at)
            self._words[_BEGUN] = self._written + len(whole)  # first: what is overwritten now cannot be read any more
            self._map[_DATA_AT + at : _DATA_AT + at + first] = whole[:first]
            self._map[_DATA_AT : _DATA_AT + len(whole) - first] = whole[first:]
            self._written += len(whole)
            self._words[_WRITTEN] = self._written

    def close(self) -> None:
        """Close the file. Only tests do so: a server process keeps its notes open until it ends."""
        self._words.release()
        self._map.close()
        os.close(self._descriptor)


class NotesReader:
    """Reader of one notes file. ``lost``: how often notes were overwritten before they were read.

    Raises ValueError if the file is not a notes file, NotOurs and OSError.
    """

    def __init__(self, path: Path) -> None:
        descriptor = private.open_file(path, os.O_RDWR)
        try:
            self.inode = os.fstat(descriptor).st_ino
            if os.fstat(descriptor).st_size <= _DATA_AT:
                raise ValueError(f"{path} is not a notes file of lightllm-otel")
            self._map = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)
        magic, _, _, self._capacity = _HEADER.unpack_from(self._map)
        if magic != _MAGIC or len(self._map) != _DATA_AT + self._capacity:
            raise ValueError(f"{path} is not a notes file that this version can read")
        self._words = _words(self._map)
        self.lost = 0

    def read(self) -> list[Any]:
        """Return the notes since the last call, by this reader or its predecessor; none if the writer has overwritten them."""
        read, written = self._words[_READ], self._words[_WRITTEN]
        data = self._copy(read, written) if written - read <= self._capacity else b""
        self._words[_READ] = written
        begun = max(self._words[_BEGUN], self._words[_WRITTEN])  # writers of earlier versions leave the first at 0
        if begun - read > self._capacity:  # the writer overtook us, maybe while we copied
            self.lost += 1
            return []
        return list(_notes_in(data))

    def _copy(self, read: int, written: int) -> bytes:
        at, count = read % self._capacity, written - read
        first = min(count, self._capacity - at)
        return self._map[_DATA_AT + at : _DATA_AT + at + first] + self._map[_DATA_AT : _DATA_AT + count - first]

    def close(self) -> None:
        """Unmap the file."""
        self._words.release()
        self._map.close()


def _words(mapped: mmap.mmap) -> memoryview:
    """Return the header as words of 8 bytes."""
    return memoryview(mapped)[:_DATA_AT].cast("Q")


def _notes_in(data: bytes) -> list[Any]:
    notes, at = [], 0
    while at + _LENGTH.size <= len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        notes.append(json.loads(data[at : at + length]))
        at += length
    return notes
