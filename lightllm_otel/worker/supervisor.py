"""Keeps an exporter running, from the model thread's housekeeping: no thread, no fork, no waiting."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lightllm_otel.guard import log
from lightllm_otel.records.folder import LOCK_NAME, is_locked
from lightllm_otel.settings import PREFIX

CHECK_SECONDS = 5.0
BACK_OFF_SECONDS = (5.0, 10.0, 20.0, 40.0, 80.0)
"""Waiting times between starts while exporters keep ending."""
PAUSE_SECONDS = 600.0
"""Waiting time after those: it is tried for as long as the server runs, for the cause may go away."""
HEALTHY_SECONDS = 300.0
"""An exporter that has run for this long makes earlier ends count no more."""


class Supervisor:
    """Starts the group's exporter when its lock is free: at once if ``eager``, and again, with growing pauses, when it ended.

    All model processes of a group do this; an exporter that finds the lock taken ends by itself.
    """

    def __init__(self, folder: Path, eager: bool) -> None:
        self._folder = folder
        self._next_check = 0.0
        self._eager = eager
        self._starts = 0
        self._running_since: float | None = None
        self._child: int | None = None

    def check(self, now: float) -> None:
        """Start an exporter if one is due. ``now``: seconds of a monotonic clock. Cheap enough for every second."""
        self._reap()
        if now < self._next_check:
            return
        self._next_check = now + CHECK_SECONDS
        if not self._eager:  # the first rank of the group comes first
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
                "the exporter ended %d times and is now started every %.0f minutes only; the server is not affected. "
                "See %s, or run: lightllm-otel exporter --folder %s",
                self._starts, PAUSE_SECONDS / 60, self._folder / "exporter.log", self._folder,
            )  # fmt: skip
        self._next_check = now + (*BACK_OFF_SECONDS, PAUSE_SECONDS)[min(self._starts, len(BACK_OFF_SECONDS))]
        self._starts += 1
        try:
            self._child = spawn_exporter(self._folder)
        except OSError as error:
            if self._starts == 1:
                log.error("the exporter cannot be started (%s) and is tried again; the server is not affected", error)

    def _reap(self) -> None:
        """The child forks itself off and ends at once; collect it, or it stays a zombie of the server's."""
        if self._child is None:
            return
        try:
            done, _ = os.waitpid(self._child, os.WNOHANG)
        except ChildProcessError:
            done = self._child
        if done:
            self._child = None


def spawn_exporter(folder: Path) -> int:
    """Start ``lightllm-otel exporter`` for this folder; the process id of a child that ends when it has detached.

    posix_spawn, because a fork would copy the page tables of a process that maps a hundred gigabytes.
    """
    environ = {**os.environ, PREFIX: "0"}  # an exporter is no server
    command = [sys.executable, "-m", "lightllm_otel", "exporter", "--folder", str(folder), "--detach"]
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, null, 1)]
        return os.posix_spawn(sys.executable, command, environ, file_actions=actions)
    finally:
        os.close(null)
