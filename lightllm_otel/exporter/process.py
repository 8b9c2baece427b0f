"""The exporter as a process of its own: how it is started, what it is called, where its log goes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from lightllm_otel.guard import log
from lightllm_otel.records import private
from lightllm_otel.records.folder import NO_DESCRIPTOR, PROCESS_NAME

LOG_NAME = "exporter.log"


def let_go_of_stderr(folder: Path) -> None:
    """Send the log to our own file from now on: holding the server's stderr would keep its pipe open after its end.

    Raises OSError when no descriptor is free.
    """
    try:
        descriptor = private.open_file(folder / LOG_NAME, os.O_WRONLY | os.O_CREAT)
        os.ftruncate(descriptor, 0)
    except OSError as error:
        if error.errno in NO_DESCRIPTOR:
            raise
        log.error("%s: the exporter has no log from here on", error)
        descriptor = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def detach(folder: Path) -> int:
    """Start the exporter in a session of its own and return at once; nobody waits for it.

    A new program with all descriptors but the standard ones closed: sockets of NCCL and the like, inherited from the
    model process, must not outlive the server in us. (Closing them in here could take one from another thread.)
    """
    command = [sys.executable, "-m", "lightllm_otel", "exporter", "--folder", str(folder), "--detached"]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, close_fds=True)
    child.returncode = 0  # it is not ours to wait for
    return 0


def name_process() -> None:
    """So that the host's health monitor can be told which processes are ours, also when they have ended."""
    try:
        Path("/proc/self/comm").write_text(PROCESS_NAME)
    except OSError as error:
        log.debug("no process name: %s", error)
