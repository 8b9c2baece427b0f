"""Which processes are ours, so that LightLLM's health monitor does not watch them."""

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
    """Whether this process is an exporter of ours: by its command line, or by its name once it has ended.

    An ended process that nobody has collected yet has no command line left.
    """
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return False
    return name == PROCESS_NAME or all(word in words for word in EXPORTER_WORDS)


def watching_health(host: Callable[..., Any], session: Any, arguments: Any, hook: Any) -> Callable[..., Any]:
    """LightLLM's ``--health_monitor`` kills the server when a process it has once seen is gone; ours may come and go.

    In a container api_server is process 1, so a detached exporter becomes its child and would be watched.
    """
    guard: Guard = session.guard

    @functools.wraps(host)
    def get_all_cared_pids(*args: Any, **kwargs: Any) -> Any:
        pids = host(*args, **kwargs)
        with guard(Stage.PATCH):
            return [pid for pid in pids if not is_exporter(pid)]
        return pids

    return get_all_cared_pids
