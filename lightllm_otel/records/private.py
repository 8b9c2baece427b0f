"""Private folders and files: this user owns them, and no other user can change them.

Rings are in /dev/shm or /tmp, where every local user can write, under names that can be guessed. So a path is never trusted.
A folder is opened without following links, and its owner and mode are checked on the descriptor. Files in it are opened
relative to that descriptor. A new file is created under a random name, and renamed once it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # opening a pipe must not wait for its other end


class NotOurs(PermissionError):
    """Raised for a file or folder that another user owns or can change; the message says what to do."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(errno.EPERM, what, str(path))

    def __reduce__(self) -> tuple[type[NotOurs], tuple[Path, str]]:
        return NotOurs, (Path(self.filename), str(self.strerror))

    def __str__(self) -> str:
        return f"{self.filename} {self.strerror}"


# Folders -------------------------------------------------------------------------------------------------------------


def open_folder(path: Path, parent: int | None = None) -> int:
    """Open a private folder and return its descriptor. ``parent``: the descriptor of the folder that contains ``path.name``.

    Raises NotOurs, and OSError if there is no such folder.
    """
    name = path if parent is None else Path(path.name)
    try:
        descriptor = os.open(name, _FOLDER, dir_fd=parent)
    except OSError as error:
        _explain(error, path, name, parent)
        raise
    try:
        _check(os.fstat(descriptor), path, OTHERS_WRITE)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def make_folder(path: Path, parent: int | None = None) -> int:
    """Open a private folder and return its descriptor; create it (0700) if it is missing. Raises NotOurs and OSError."""
    if parent is None:
        make_parents(path)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path if parent is None else path.name, 0o700, dir_fd=parent)
    return open_folder(path, parent)


def make_parents(path: Path) -> None:
    """Create the parent folders with mode 0755, so that no umask lets other users write there."""
    for folder in reversed(path.parents):
        if not folder.exists():
            with contextlib.suppress(FileExistsError):
                folder.mkdir(0o755)


def close_to_others(descriptor: int) -> None:
    """Remove all permissions of other users. An earlier version created such files and folders with 0644 and 0755."""
    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    if mode & 0o077:
        os.fchmod(descriptor, mode & ~0o077)


# Files ---------------------------------------------------------------------------------------------------------------


def open_file(path: Path, flags: int = os.O_RDONLY, foreign_folder: bool = False, refused: int = OTHERS_WRITE) -> int:
    """Open a private regular file that has one name, and return its descriptor; with O_CREAT in ``flags``, create it (0600).

    ``foreign_folder``: the folder may belong to another user, but the file must not. ``refused``: mode bits that the file
    must not have. Raises NotOurs and OSError.
    """
    folder = _any_folder(path.parent) if foreign_folder else open_folder(path.parent)
    try:
        descriptor = os.open(path.name, flags | _FILE, 0o600, dir_fd=folder)
    except OSError as error:
        _explain(error, path, Path(path.name), folder)
        raise
    finally:
        os.close(folder)
    try:
        check_file(descriptor, path, refused)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_file(descriptor: int, path: Path, refused: int = OTHERS_WRITE) -> None:
    """Raise NotOurs unless this is a regular file of this user that has one name and no ``refused`` mode bits."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise NotOurs(path, "is not a plain file; remove it")
    _check(found, path, refused)
    if found.st_nlink > 1:
        raise NotOurs(path, f"has {found.st_nlink} names (hard links), so other users may have access to it; remove it")


def read(path: Path, most: int, foreign_folder: bool = False, refused: int = OTHERS_WRITE) -> bytes:
    """Read a private file. Raises NotOurs, OSError, and ValueError if it has more than ``most`` bytes."""
    with os.fdopen(open_file(path, os.O_RDONLY, foreign_folder, refused), "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{path} has more than {most} bytes, so lightllm-otel did not write it; remove it")
    return content


def write(path: Path, content: bytes, mode: int = 0o600, foreign_folder: bool = False) -> None:
    """Replace a file atomically. Raises NotOurs and OSError."""
    new = NewFile(path, foreign_folder)
    try:
        with os.fdopen(os.dup(new.descriptor), "wb") as file:
            file.write(content)
        new.name(mode)
    except BaseException:
        new.discard()
        raise
    os.close(new.descriptor)


class NewFile:
    """New file under a random temporary name.

    Call :meth:`name` or :meth:`discard` once. After :meth:`name`, the caller closes ``descriptor``; :meth:`discard` closes it.
    Raises NotOurs and OSError.
    """

    def __init__(self, path: Path, foreign_folder: bool = False) -> None:
        self._path = path
        self._temporary = f".{os.urandom(8).hex()}.new"
        self._folder = _any_folder(path.parent) if foreign_folder else open_folder(path.parent)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _FILE
            self.descriptor = os.open(self._temporary, flags, 0o600, dir_fd=self._folder)
        except BaseException:
            os.close(self._folder)
            raise

    def name(self, mode: int = 0o600) -> None:
        """Rename the file to its final name, with this mode.

        An existing file or link of that name is replaced, never followed.
        """
        os.fchmod(self.descriptor, mode)
        os.rename(self._temporary, self._path.name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        os.close(self._folder)

    def discard(self) -> None:
        """Close and remove the file."""
        os.close(self.descriptor)
        with contextlib.suppress(OSError):
            os.unlink(self._temporary, dir_fd=self._folder)
        with contextlib.suppress(OSError):
            os.close(self._folder)


def _check(found: os.stat_result, path: Path, refused: int) -> None:
    if found.st_uid != os.geteuid():
        what = f"belongs to another user (uid {found.st_uid})"
        raise NotOurs(path, f"{what}, so it is not used; remove it, or use a folder of your own")
    if found.st_mode & refused:
        what = f"can be written by other users (mode {stat.S_IMODE(found.st_mode):o})"
        raise NotOurs(path, f"{what}, so it is not used; chmod go-w, or use a folder of your own")


def _any_folder(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _explain(error: OSError, path: Path, name: Path, parent: int | None) -> None:
    """Raise NotOurs if that explains why the file could not be opened; else set the full path in the error."""
    error.filename = str(path)
    try:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except OSError:
        return
    if stat.S_ISLNK(found.st_mode):
        raise NotOurs(
            path, "is a symbolic link and is not followed; remove it, or use the path that it points to"
        ) from error
    _check(found, path, 0)
