"""CUPTI through torch.profiler, for the benchmarks that watch a model beside the plugin."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def profiled(path: Path, host: bool = False) -> Iterator[None]:
    """Run torch.profiler with the GPU's activities, and the host's if ``host``; write the trace to ``path``."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CUDA, *([ProfilerActivity.CPU] if host else [])]
    with profile(activities=activities) as profiler:
        yield
        torch.cuda.synchronize()
    profiler.export_chrome_trace(str(path))
