"""Where rings lie, who owns them, and who is alive: one folder per TP group, locks instead of process ids.

``DIR/GROUP/rank-N.ring`` (locked by its model process), ``DIR/GROUP/exporter.lock``, ``DIR/targets/GROUP.json``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
from pathlib import Path

RING_PATTERN = "rank-*.ring"
LOCK_NAME = "exporter.lock"
PROCESS_NAME = "lightllm-otel"  # of the exporter; the kernel keeps 15 characters


def group_key(host: str, port: int, dp_rank: int) -> str:
    """One name for all ranks of a tensor-parallel group on this machine, whichever server started them."""
    return re.sub(r"[^A-Za-z0-9.-]", "-", f"{host}-{port}-dp{dp_rank}")


def group_folder(directory: Path, key: str) -> Path:
    """The group's folder, made if missing; the parent is readable so that Prometheus finds ``targets``.

    Raises OSError when it cannot be made, or when somebody else's folder lies at that (predictable) place.
    """
    folder = directory / key
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    if directory.stat().st_uid not in (os.getuid(), 0):
        raise PermissionError(errno.EPERM, "belongs to another user", str(directory))
    folder.mkdir(mode=0o755, exist_ok=True)
    return folder


def ring_path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.ring"


def rank_of(path: Path) -> int:
    return int(path.stem.partition("-")[2])


class FileLock:
    """A POSIX record lock on a file: freed by the kernel when its process ends, not inherited by a fork.

    The file is never closed while the lock is held: closing any descriptor of it would free the lock.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock if it is free; False when another process has it."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock on this file. (A process does not see its own locks.)"""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


_FLOCK = struct.Struct("hhqqi")  # struct flock: type, whence, start, length, process


def lock_owner(path: Path) -> int:
    """The process that holds the lock on this file, by the number that it has for us; 0 for none that we can see."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, owner = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    except OSError:
        return 0
    finally:
        os.close(descriptor)
    return 0 if kind == fcntl.F_UNLCK else int(owner)
