"""Where rings lie, who owns them, and who is alive: one folder per TP group, locks instead of process ids.

``DIR/GROUP/rank-N.ring`` (locked by its model process), ``DIR/GROUP/exporter.lock``. Both folders are ours alone.
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
NEW_PATTERN = "*.new"  # files that had no name yet when their process ended
LOCK_NAME = "exporter.lock"
PROCESS_NAME = "lightllm-otel"  # of the exporter; the kernel keeps 15 characters
NEW_SECONDS = 3600.0
NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # what this process lacks says nothing of a file


def group_key(host: str, port: int, dp_rank: int) -> str:
    """One name for all ranks of a tensor-parallel group on this machine, whichever server started them."""
    return re.sub(r"[^A-Za-z0-9.-]", "-", f"{host}-{port}-dp{dp_rank}")


def group_folder(directory: Path, key: str) -> Path:
    """Make the group's folder if it is missing; it and ``directory`` are ours, and nobody else can write there.

    Raises OSError when it cannot be made, and NotOurs when somebody else's folder lies at that (predictable) place.
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
    """Folders of groups in ``directory`` that are ours. Raises NotOurs where ``directory`` is not."""
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
    return folder / f"rank-{rank}.ring"


def rank_of(path: Path) -> Optional[int]:
    """Return the rank whose ring has this name; None for a name that only looks like one (``rank-0.bak.ring``)."""
    found = _RING_NAME.fullmatch(path.name)
    return int(found[1]) if found is not None else None


# Locks ---------------------------------------------------------------------------------------------------------------


class FileLock:
    """A POSIX record lock on a file: freed by the kernel when its process ends, not inherited by a fork.

    The file is never closed while the lock is held: closing any descriptor of it would free the lock. Nobody else can open
    it: a lock that only reads would be enough to keep us out.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock if it is free; False when another process has it. Raises NotOurs and OSError."""
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
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


_FLOCK = struct.Struct("hhqqi")  # struct flock: type, whence, start, length, process
_WHOLE_FILE = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


def _lock_on(path: Path) -> tuple[int, int]:
    """(kind, process) of the lock that another process holds on this file of ours. Asking takes no lock.

    A file that cannot be asked because no descriptor is free counts as held by a process that we cannot see.
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

    True, too, where no descriptor is free to ask with: nobody is taken for dead for what we lack.
    """
    return _lock_on(path)[0] != fcntl.F_UNLCK


def lock_owner(path: Path) -> int:
    """The process that holds the lock on this file, by the number that it has for us; 0 for none that we can see."""
    kind, owner = _lock_on(path)
    return 0 if kind == fcntl.F_UNLCK else owner


def hold(descriptor: int) -> None:
    """Lock a file for as long as this descriptor is open; other descriptors of this process can be closed. Raises OSError."""
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _WHOLE_FILE)


def is_held(descriptor: int) -> bool:
    """Whether somebody who may write the file holds it. A reader's lock, which anybody may take, is not counted."""
    kind = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _WHOLE_FILE))[0]
    return bool(kind == fcntl.F_WRLCK)


# What the dead left --------------------------------------------------------------------------------------------------


def sweep(directory: Path, own: Path, more: tuple[str, ...]) -> None:
    """Remove what processes that have ended left in the groups of ``directory``: whatever nobody has locked.

    ``own``: the group whose exporter we are. ``more``: names of files that are of no use once all ranks have ended. A group
    with an exporter is left to it, and so are files that only look like rings: they may be somebody's copies. Raises OSError.
    """
    for folder in groups(directory):
        # Asking for a lock that is our own would free it.
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
    """Remove a ring or notes file that no process holds. Raises OSError.

    A process that starts in this moment may give the same name to a file of its own, so the file gets another name first
    and is looked at again under that.
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
