"""Folders of rings: one per TP group. File locks, not process ids, tell which processes are alive.

The files are ``DIR/GROUP/rank-N.ring``, locked by its model process, and ``DIR/GROUP/exporter.lock``. Both folders belong to
the user of the server, and nobody else can write there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import struct
import time
from pathlib import Path
from typing import Optional

from lightllm_otel.records import private

RING_PATTERN = "rank-*.ring"
_RING_NAME = re.compile(r"rank-(0|[1-9][0-9]{0,4})\.ring")
NOTES_PATTERN = "*.notes"
NEW_PATTERN = "*.new"  # temporary files whose process ended before it renamed them
LOCK_NAME = "exporter.lock"
PROCESS_NAME = "lightllm-otel"  # of the exporter process; the kernel keeps 15 characters
NEW_SECONDS = 3600.0
NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # errors of this process, which say nothing about the file


def group_key(host: str, port: int, dp_rank: int) -> str:
    """Return the name of a tensor-parallel group, which is the same for all of its ranks on this machine."""
    return re.sub(r"[^A-Za-z0-9.-]", "-", f"{host}-{port}-dp{dp_rank}")


def group_folder(directory: Path, key: str) -> Path:
    """Return the group's folder, and create it if it is missing, so that only this user can write there.

    Raises OSError if it cannot be created, and NotOurs if another user has created a folder at this (predictable) path.
    """
    above = private.make_folder(directory)
    try:
        descriptor = private.make_folder(directory / key, above)
        try:
            private.close_to_others(descriptor)
        finally:
            os.close(descriptor)
    finally:
        os.close(above)
    return directory / key


def groups(directory: Path) -> list[Path]:
    """Return the group folders in ``directory`` that belong to this user. Raises NotOurs if ``directory`` does not."""
    try:
        above = private.open_folder(directory)
    except FileNotFoundError:
        return []
    found = []
    try:
        for name in sorted(os.listdir(above)):  # noqa: PTH208 - pathlib lists no descriptors
            with contextlib.suppress(OSError):
                os.close(private.open_folder(directory / name, above))
                found.append(directory / name)
    finally:
        os.close(above)
    return found


def ring_path(folder: Path, rank: int) -> Path:
    """Return the path of a rank's ring."""
    return folder / f"rank-{rank}.ring"


def rank_of(path: Path) -> Optional[int]:
    """Return the rank whose ring has this name; None for a name that only looks like one (``rank-0.bak.ring``)."""
    found = _RING_NAME.fullmatch(path.name)
    return int(found[1]) if found is not None else None


# Locks ---------------------------------------------------------------------------------------------------------------


class FileLock:
    """POSIX record lock on a file. The kernel frees it when the process ends, and a fork does not inherit it.

    The file stays open while the lock is held, because closing any descriptor of it would free the lock. Other users must not be
    able to open the file: even their read lock would block ours.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock if it is free, else return False. Raises NotOurs and OSError."""
        descriptor = private.open_file(self._path, os.O_RDWR | os.O_CREAT)
        try:
            private.close_to_others(descriptor)
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Free the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


_FLOCK = struct.Struct("hhqqi")  # struct flock: type, whence, start, length, process
_WHOLE_FILE = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


def _lock_on(path: Path) -> tuple[int, int]:
    """Return ``(kind, process)`` of the lock that another process holds on this file, without taking a lock.

    If this process has no free descriptor, the file counts as locked by a process that we cannot see.
    """
    try:
        descriptor = private.open_file(path)
    except OSError as error:
        return (fcntl.F_WRLCK if error.errno in NO_DESCRIPTOR else fcntl.F_UNLCK), 0
    try:
        kind, _, _, _, owner = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, _WHOLE_FILE))
    except OSError:
        return fcntl.F_UNLCK, 0
    finally:
        os.close(descriptor)
    return kind, int(owner)


def is_locked(path: Path) -> bool:
    """Return whether another process holds the lock on this file. (A process does not see its own locks.)

    Return True if this process has no free descriptor, so that a living process never counts as dead.
    """
    return _lock_on(path)[0] != fcntl.F_UNLCK


def lock_owner(path: Path) -> int:
    """Return the id of the process that holds the lock, in our PID namespace; 0 if there is none that we can see."""
    kind, owner = _lock_on(path)
    return 0 if kind == fcntl.F_UNLCK else owner


def hold(descriptor: int) -> None:
    """Lock a file until this descriptor is closed; closing other descriptors of the file is safe. Raises OSError."""
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _WHOLE_FILE)


def is_held(descriptor: int) -> bool:
    """Return whether a process that can write the file has locked it. Read locks, which any process can take, do not count."""
    kind = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _WHOLE_FILE))[0]
    return bool(kind == fcntl.F_WRLCK)


# Files of processes that have ended ----------------------------------------------------------------------------------


def sweep(directory: Path, own: Path, more: tuple[str, ...]) -> None:
    """Remove the files of processes that have ended from the groups in ``directory``: all rings and notes that are not locked.

    ``own``: the group of this exporter. ``more``: names of further files, which are removed once all ranks of a group have ended.
    A group that has its own exporter is skipped. Files that only look like rings stay: they may be copies. Raises OSError.
    """
    for folder in groups(directory):
        # Checking our own lock would free it: opening and closing the file again releases it.
        if folder.name == own.name or not is_locked(folder / LOCK_NAME):
            _sweep(folder, more)


def _sweep(folder: Path, more: tuple[str, ...]) -> None:
    for path in (*_rings(folder), *folder.glob(NOTES_PATTERN)):
        remove_if_dead(path)
    if not _rings(folder):
        for name in more:
            (folder / name).unlink(missing_ok=True)
    for path in folder.glob(NEW_PATTERN):
        if _age(path) > NEW_SECONDS:
            path.unlink(missing_ok=True)


def _rings(folder: Path) -> list[Path]:
    return [path for path in folder.glob(RING_PATTERN) if rank_of(path) is not None]


def remove_if_dead(path: Path) -> None:
    """Remove a ring or notes file that no process has locked. Raises OSError.

    A process that starts at this moment may create a file with the same name. So the file is renamed first, and its lock is
    checked again under the new name.
    """
    if is_locked(path):
        return
    aside = path.with_name(f".{os.urandom(8).hex()}.new")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        if is_locked(aside):
            aside.rename(path)
        else:
            aside.unlink()


def _age(path: Path) -> float:
    try:
        return time.time() - path.lstat().st_mtime
    except OSError:
        return 0.0
