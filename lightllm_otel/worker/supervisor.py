"""Supervisor of the exporter, called from the model thread's housekeeping. It never starts a thread, forks or waits."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lightllm_otel.guard import log
from lightllm_otel.records.folder import LOCK_NAME, is_locked
from lightllm_otel.settings import PREFIX

CHECK_SECONDS = 5.0
BACK_OFF_SECONDS = (5.0, 10.0, 20.0, 40.0, 80.0)
"""Seconds between starts while exporters keep ending."""
PAUSE_SECONDS = 600.0
"""Seconds between later starts. They go on for as long as the server runs, because the cause may disappear."""
HEALTHY_SECONDS = 300.0
"""Seconds of running after which the earlier ends of an exporter are forgotten."""


class Supervisor:
    """Starter of the group's exporter while its lock is free: at once if ``eager``, later with growing pauses.

    All model processes of a group have one. An exporter that finds the lock taken ends by itself.
    """

    def __init__(self, folder: Path, eager: bool) -> None:
        self._folder = folder
        self._next_check = 0.0
        self._eager = eager
        self._starts = 0
        self._running_since: float | None = None
        self._child: int | None = None

    def check(self, now: float) -> None:
        """Start an exporter if one is due. ``now``: seconds of a monotonic clock. May be called every second."""
        self._reap()
        if now < self._next_check:
            return
        self._next_check = now + CHECK_SECONDS
        if not self._eager:  # let the group's first rank start it
            self._eager = True
            return
        if is_locked(self._folder / LOCK_NAME):
            self._runs(now)
            return
        self._running_since = None
        self._start(now)

    def _runs(self, now: float) -> None:
        if self._running_since is None:
            self._running_since = now
        if now - self._running_since >= HEALTHY_SECONDS:
            self._starts = 0

    def _start(self, now: float) -> None:
        if self._starts == len(BACK_OFF_SECONDS):
            log.error(
                "the exporter has ended %d times and is now started only every %.0f minutes; the server is not affected. "
                "See %s, or run: lightllm-otel exporter --folder %s",
                self._starts, PAUSE_SECONDS / 60, self._folder / "exporter.log", self._folder,
            )  # fmt: skip
        self._next_check = now + (*BACK_OFF_SECONDS, PAUSE_SECONDS)[min(self._starts, len(BACK_OFF_SECONDS))]
        self._starts += 1
        try:
            self._child = spawn_exporter(self._folder)
        except OSError as error:
            if self._starts == 1:
                log.error(
                    "the exporter cannot be started (%s); the next try follows, the server is not affected", error
                )

    def _reap(self) -> None:
        """Collect the child, which detaches and ends at once. Otherwise it would remain a zombie of the server."""
        if self._child is None:
            return
        try:
            done, _ = os.waitpid(self._child, os.WNOHANG)
        except ChildProcessError:
            done = self._child
        if done:
            self._child = None


def spawn_exporter(folder: Path) -> int:
    """Start ``lightllm-otel exporter`` for this folder; return the id of a child that ends when it has detached.

    It uses posix_spawn, because a fork would copy the page tables of a process that maps a hundred gigabytes. Raises OSError.
    """
    environ = {**os.environ, PREFIX: "0"}  # the exporter must not measure itself
    command = [sys.executable, "-m", "lightllm_otel", "exporter", "--folder", str(folder), "--detach"]
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, null, 1)]
        return os.posix_spawn(sys.executable, command, environ, file_actions=actions)
    finally:
        os.close(null)
