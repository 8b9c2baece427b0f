"""Health monitor: keeps LightLLM's health monitor from watching the exporter."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightllm_otel.guard import Guard
from lightllm_otel.records.folder import PROCESS_NAME
from lightllm_otel.records.vocabulary import Stage

EXPORTER_WORDS = (b"lightllm_otel", b"exporter")


def is_exporter(pid: int) -> bool:
    """Tell whether this process is an exporter, from its command line, or from its name if it has ended.

    A process that has ended but has not been collected yet has no command line.
    """
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return False
    return name == PROCESS_NAME or all(word in words for word in EXPORTER_WORDS)


def watching_health(host: Callable[..., Any], session: Any, arguments: Any, hook: Any) -> Callable[..., Any]:
    """Wrap the list of processes that LightLLM's ``--health_monitor`` watches, and leave exporters out.

    The monitor kills the server when a process is gone, but an exporter may come and go. In a container api_server is process
    1, so a detached exporter becomes its child and would be watched.
    """
    guard: Guard = session.guard

    @functools.wraps(host)
    def get_all_cared_pids(*args: Any, **kwargs: Any) -> Any:
        pids = host(*args, **kwargs)
        with guard(Stage.PATCH):
            return [pid for pid in pids if not is_exporter(pid)]
        return pids

    return get_all_cared_pids
