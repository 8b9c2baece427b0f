"""torch's profiler, its ranges, and NVTX ranges for Nsight."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

from lightllm_otel.guard import log

Push = Callable[[str], Any]
Pop = Callable[[], Any]


def torch_profiler() -> Any:
    """Start torch's profiler, and return it."""
    import torch

    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available() and torch.version.cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    # Without this option, newer profilers warn in the host's log that events would be lost in the next cycle.
    known = inspect.signature(torch.profiler.profile).parameters
    accumulate: dict[str, Any] = {"acc_events": True} if "acc_events" in known else {}
    # Since v1.1.0 two threads launch in turn. Where torch can, it profiles both.
    threads: dict[str, Any] = {}
    if "experimental_config" in known:
        config: Any = torch._C._profiler._ExperimentalConfig
        with contextlib.suppress(TypeError):
            threads = {"experimental_config": config(profile_all_threads=True)}
    profiler = torch.profiler.profile(activities=activities, **accumulate, **threads)
    profiler.start()
    return profiler


def record_functions(name_of: Callable[[str], str]) -> tuple[Push, Pop]:
    """Return functions that enter and leave a range of torch's profiler. ``name_of`` makes the range's name from a label."""
    import torch

    entered: list[Any] = []

    def push(label: str) -> None:
        entered.append(torch.profiler.record_function(name_of(label)))
        entered[-1].__enter__()

    def pop() -> None:
        entered.pop().__exit__(None, None, None)

    return push, pop


def nvtx() -> tuple[Push, Pop] | None:
    """Return torch's functions that enter and leave an NVTX range, or None, after one log line, where NVTX is missing."""
    import torch

    push: Push = torch.cuda.nvtx.range_push
    pop: Pop = torch.cuda.nvtx.range_pop
    try:
        push("lightllm-otel")
        pop()
    except Exception as error:  # noqa: BLE001 - without NVTX there are no ranges, whatever the reason is
        log.error("LIGHTLLM_OTEL_NVTX=1 has no effect, because torch has no NVTX here (%s)", error)
        return None
    return push, pop
