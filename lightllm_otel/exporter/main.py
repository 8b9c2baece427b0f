"""The exporter's life as a process: one per group, until its ranks have ended."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from lightllm_otel.exporter import discovery
from lightllm_otel.exporter.exporter import Exporter
from lightllm_otel.exporter.rank_rings import POSITIONS
from lightllm_otel.guard import log, log_to_stderr
from lightllm_otel.otel_environment import OtelEnvironment
from lightllm_otel.records.folder import LOCK_NAME, FileLock, group_folder, sweep
from lightllm_otel.settings import Settings


def main(folder: Path, settings: Settings, detached: bool) -> int:
    """Run a group's exporter in this process, and return its exit status. ``detached``: as a server's companion."""
    log_to_stderr()
    try:
        folder = folder.absolute()
        lock = FileLock(group_folder(folder.parent, folder.name) / LOCK_NAME)
        free = lock.acquire()
    except OSError as error:
        log.error("the exporter does not start: %s", error)
        return 1
    if not free:
        if not detached:
            log.error("another exporter serves %s; its address is in %s", folder, folder / discovery.ADDRESS)
        return 0 if detached else 1
    try:
        sweep(folder.parent, folder, (POSITIONS, discovery.ADDRESS))
    except OSError as error:
        log.warning("files of servers that have ended stay: %s", error)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if detached:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.nice(5)
    exporter = Exporter(folder, settings, detached=detached, otel_environment=OtelEnvironment.from_env(os.environ))
    try:
        exporter.run()
    except (SystemExit, KeyboardInterrupt):
        exporter.close()
    return 0
