"""The exporter's process: its start, its name and its log file."""

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
    """Redirect stderr to our own log file, because holding the server's stderr would keep its pipe open after its end.

    Raises OSError if no file descriptor is free.
    """
    try:
        descriptor = private.open_file(folder / LOG_NAME, os.O_WRONLY | os.O_CREAT)
        os.ftruncate(descriptor, 0)
    except OSError as error:
        if error.errno in NO_DESCRIPTOR:
            raise
        log.error("%s: the log of the exporter cannot be written; its messages are lost from now on", error)
        descriptor = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def detach(folder: Path) -> int:
    """Start the exporter in a session of its own and return at once.

    It is a new program with all descriptors closed except the standard ones. Sockets of the model process, such as NCCL's, must
    not outlive the server in the exporter. Closing them in this process could take one from another thread.
    """
    command = [sys.executable, "-m", "lightllm_otel", "exporter", "--folder", str(folder), "--detached"]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, close_fds=True)
    child.returncode = 0  # keeps subprocess from waiting for it
    return 0


def name_process() -> None:
    """Name the process, so that the host's health monitor can be told which processes are ours, even after their end."""
    try:
        Path("/proc/self/comm").write_text(PROCESS_NAME)
    except OSError as error:
        log.debug("the process could not be named: %s", error)
