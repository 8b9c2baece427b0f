"""LightLLM's ``--health_monitor`` kills the server when a process it has once seen is gone; ours may come and go."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from lightllm_otel.guard import Guard
from lightllm_otel.patch.ledger import Ledger
from lightllm_otel.vocabulary import Stage

EXPORTER_WORDS = (b"lightllm_otel", b"exporter")


def is_exporter(pid: int) -> bool:
    """Whether this process is an exporter of ours, by its command line."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return all(word in words for word in EXPORTER_WORDS)


def patch_health(module: ModuleType, ledger: Ledger, guard: Guard) -> None:
    """Take exporters out of the processes that the monitor watches.

    In a container api_server is process 1, so a detached exporter becomes its child and would be watched.
    """
    if hasattr(module, "get_all_cared_pids"):  # OLD watches the address only
        ledger.replace(module, "get_all_cared_pids", lambda host: _without_exporters(host, guard))


def _without_exporters(host: Callable[[], list[int]], guard: Guard) -> Callable[[], list[int]]:
    @functools.wraps(host)
    def get_all_cared_pids(*args: Any, **kwargs: Any) -> list[int]:
        pids = host(*args, **kwargs)
        with guard(Stage.PATCH):
            pids = [pid for pid in pids if not is_exporter(pid)]
        return pids

    return get_all_cared_pids
