"""Discovery files of an exporter: one for Prometheus that every user may read, and one for our own commands.

Prometheus' file_sd allows one ``*``, in the last part of a path. So its files lie directly in /dev/shm, as
``lightllm-otel-targets.*.json``, or in the folder that ``LIGHTLLM_OTEL_TARGETS`` names. Other users can add files in /dev/shm,
but cannot remove or replace ours, and cannot guess the name. An exporter holds a lock on its file while it lives. Our own
commands read the address in the group's folder instead, where only this user can write.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Optional

from lightllm_otel.exporter.http_server import MetricsServer
from lightllm_otel.parts import Parts
from lightllm_otel.records import private
from lightllm_otel.records.folder import LOCK_NAME, groups, hold, is_held, is_locked
from lightllm_otel.records.vocabulary import ExporterStage

ADDRESS = "exporter.json"
PREFIX, SUFFIX = "lightllm-otel-targets.", ".json"
KEEP_SECONDS = 10.0  # interval of the check that the files still exist
MOST_BYTES = 1 << 16
_ANY = ("0.0.0.0", "::", "")


def pattern(folder: Path) -> str:
    """Return the pattern of these files for Prometheus' configuration."""
    return f"{folder}/{PREFIX}*{SUFFIX}"


class Announcement:
    """Both discovery files of one exporter. ``targets`` is the folder of the one for Prometheus, or None without one.

    ``now`` returns monotonic seconds. Nothing here raises; a file that cannot be written is counted in ``parts``.
    """

    def __init__(
        self,
        folder: Path,
        targets: Optional[Path],
        now: Callable[[], float] = time.monotonic,
        parts: Optional[Parts] = None,
    ) -> None:
        self._parts = parts or Parts()
        self._folder = folder
        self._targets = targets
        self._now = now
        group = re.sub(r"[^A-Za-z0-9.-]", "-", folder.name)[:100]
        self._name = f"{PREFIX}{os.geteuid()}-{group}-{os.urandom(4).hex()}{SUFFIX}"
        self._descriptor: int | None = None
        self._said: tuple[str, list[Any]] | None = None
        self._next = 0.0
        self._failed = False

    def keep(self, server: MetricsServer, facts: Mapping[str, Any]) -> None:
        """Write the files that are missing or out of date. Cheap enough for every poll."""
        said = (own_address(server), entry(server, self._folder.name, facts))
        now = self._now()
        if now < self._next and (said == self._said or self._failed):
            return
        self._next = now + KEEP_SECONDS
        changed = said != self._said
        failed = [*filter(None, (self._keep_address(said[0], changed), self._publish(said[1], changed)))]
        if failed:
            self._parts.failed(
                ExporterStage.DISCOVERY, "files",
                f"{'; '.join(failed)}. http://{said[0]}/metrics is served nevertheless; "
                f"the files are tried again every {KEEP_SECONDS:.0f} s",
            )  # fmt: skip
        self._failed = bool(failed)
        self._said = self._said if failed else said

    def _keep_address(self, address: str, changed: bool) -> str:
        path = self._folder / ADDRESS
        try:
            if changed or not path.exists():
                private.write(path, json.dumps({"address": address}).encode())
        except OSError as error:
            return f"{path} cannot be written ({error.strerror}), so lightllm-otel top cannot find the exporter"
        return ""

    def _publish(self, targets: list[Any], changed: bool) -> str:
        folder = self._targets
        try:
            if folder is not None and (changed or not self._is_there(folder)):
                self._write(folder, json.dumps(targets) + "\n")
        except OSError as error:
            return (
                f"{pattern(folder or Path())} cannot be written ({error.strerror}), so Prometheus cannot find the exporter by "
                "file; set LIGHTLLM_OTEL_TARGETS to another folder"
            )
        return ""

    def _write(self, folder: Path, text: str) -> None:
        """Write the file and name it only when it is complete, locked and readable for Prometheus, whatever the umask."""
        if not folder.exists():
            private.make_parents(folder)
            folder.mkdir(mode=0o755, exist_ok=True)
            folder.chmod(0o755)
        tidy(folder)
        new = private.NewFile(folder / self._name, foreign_folder=True)
        try:
            with contextlib.suppress(OSError):  # a kernel or file system without such locks
                hold(new.descriptor)
            os.write(new.descriptor, text.encode())
            new.name(mode=0o644)
        except BaseException:
            new.discard()
            raise
        self._let_go()
        self._descriptor = new.descriptor

    def _is_there(self, folder: Path) -> bool:
        if self._descriptor is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._descriptor), (folder / self._name).lstat())
        except OSError:
            return False

    def _let_go(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def withdraw(self) -> None:
        """Remove both files."""
        with contextlib.suppress(OSError):
            if self._targets is not None and self._is_there(self._targets):
                (self._targets / self._name).unlink()
        with contextlib.suppress(OSError):
            (self._folder / ADDRESS).unlink()
        self._let_go()
        self._said = None


def entry(server: MetricsServer, group: str, facts: Mapping[str, Any]) -> list[Any]:
    """Return the content of the file for Prometheus. Its labels never change, so a restart is the same target.

    Two files of one exporter have equal content, so Prometheus scrapes it once. ``instance`` has the host's name, because the
    agents of all hosts would write 127.0.0.1 otherwise. ``lightllm_group`` joins ranks on several hosts.
    """
    host = socket.gethostname()
    address = server.address if server.host not in _ANY else f"{host}:{server.port}"
    # No label ``job``: the user names the job in Prometheus' configuration.
    labels = {"instance": f"{host}:{server.port}"}
    if int(facts.get("nodes") or 1) > 1:
        labels["lightllm_group"] = group
    return [{"targets": [address], "labels": labels}]


def own_address(server: MetricsServer) -> str:
    """Return host:port for a command on this host."""
    if server.host in _ANY:
        return f"{'[::1]' if ':' in server.host else '127.0.0.1'}:{server.port}"
    return server.address


def targets(directory: Path) -> dict[str, str]:
    """Return group → address of every living exporter that has announced itself in this folder. Raises NotOurs."""
    found = {}
    for folder in groups(directory):
        if is_locked(folder / LOCK_NAME):
            with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
                found[folder.name] = str(json.loads(private.read(folder / ADDRESS, MOST_BYTES))["address"])
    return found


def tidy(folder: Path) -> None:
    """Remove the files that dead exporters of this user have left. Raises OSError."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in os.listdir(opened):  # noqa: PTH208 - pathlib lists no descriptors
            if name.startswith(PREFIX) and name.endswith(SUFFIX):
                with contextlib.suppress(OSError):
                    _remove_if_dead(name, opened)
    finally:
        os.close(opened)


def _remove_if_dead(name: str, folder: int) -> None:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not is_held(descriptor):
            os.unlink(name, dir_fd=folder)
    finally:
        os.close(descriptor)
