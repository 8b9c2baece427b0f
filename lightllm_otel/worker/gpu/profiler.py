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
    """Return a profiler that has been started."""
    import torch

    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available() and torch.version.cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    # Where the profiler has it: without, it warns in the host's log that its events would be lost in a next cycle.
    known = inspect.signature(torch.profiler.profile).parameters
    accumulate: dict[str, Any] = {"acc_events": True} if "acc_events" in known else {}
    # Since v1.1.0 two threads launch in turn: where torch knows how, both are seen.
    threads: dict[str, Any] = {}
    if "experimental_config" in known:
        config: Any = torch._C._profiler._ExperimentalConfig
        with contextlib.suppress(TypeError):
            threads = {"experimental_config": config(profile_all_threads=True)}
    profiler = torch.profiler.profile(activities=activities, **accumulate, **threads)
    profiler.start()
    return profiler


def record_functions(name_of: Callable[[str], str]) -> tuple[Push, Pop]:
    """Return how to enter and leave a range of torch's profiler; ``name_of`` makes the range's name from a label."""
    import torch

    entered: list[Any] = []

    def push(label: str) -> None:
        entered.append(torch.profiler.record_function(name_of(label)))
        entered[-1].__enter__()

    def pop() -> None:
        entered.pop().__exit__(None, None, None)

    return push, pop


def nvtx() -> tuple[Push, Pop] | None:
    """Torch's, tried out once; None, and one log line, where it has none."""
    import torch

    push: Push = torch.cuda.nvtx.range_push
    pop: Pop = torch.cuda.nvtx.range_pop
    try:
        push("lightllm-otel")
        pop()
    except Exception as error:  # noqa: BLE001 - whatever is missing, there are no ranges then
        log.error("LIGHTLLM_OTEL_NVTX=1 has no effect: torch has no NVTX here (%s)", error)
        return None
    return push, pop
