"""Profiling on request: torch.profiler records the kernels of a running model process, with our operators as ranges.

A profiler slows the server down, so it runs only when the owner asks for it, for some seconds, on the first rank. Operators
become ranges of the profiler, so its trace shows every kernel inside the operator that launched it. Python does not launch the
kernels of a replayed CUDA graph. In an instrumented graph they lie between timestamps, so the answer names the operators of its
intervals.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightllm_otel.contracts.patch_set import PatchSet
from lightllm_otel.guard import Guard, log
from lightllm_otel.records import profile_request
from lightllm_otel.worker.gpu.profiler import record_functions, torch_profiler
from lightllm_otel.worker.host import ranges

MOST_SECONDS = 60.0


class KernelProfile:
    """Profiler of kernels. :meth:`tick` is called once a second on the model's thread, between steps.

    ``start`` returns a running profiler. ``instrumented_graphs`` returns the operators of each graph's intervals.
    """

    def __init__(
        self,
        folder: Path,
        guard: Guard,
        start: Callable[[], Any] | None = None,
        instrumented_graphs: Callable[[], list[list[str]]] = list,
    ) -> None:
        self._folder = folder
        self._guard = guard
        self._start = start or torch_profiler
        self._instrumented_graphs = instrumented_graphs
        self._patch_set = PatchSet()
        self._profiler: Any = None
        self._until = 0.0
        self._thread = 0
        self._path = Path()

    def tick(self, model: Any, now: float | None = None) -> None:
        """Start a requested profile, or end one whose time is over. Errors are written to the answer and never raised.

        ``now``: seconds of a monotonic clock.
        """
        now = time.monotonic() if now is None else now
        try:
            if self._profiler is not None:
                # torch's profiler must end on the thread that started it. On another thread it would stay on.
                if now >= self._until and threading.get_ident() == self._thread:
                    self._end()
            elif (asked := profile_request.take(self._folder)) is not None:
                self._begin(asked, model, now)
        except Exception as error:  # noqa: BLE001 - measuring goes on if a profiler fails
            with contextlib.suppress(Exception):  # it may not even have started
                self._drop().stop()
            log.warning("the requested profile of kernels failed, and measuring goes on: %s", error)
            profile_request.answer(self._folder, {"ok": False, "text": str(error) or type(error).__name__})

    def _begin(self, asked: dict[str, Any], model: Any, now: float) -> None:
        if _host_profiles():
            raise RuntimeError("two profilers cannot run at once; restart the server without --enable_profiling")
        self._thread = threading.get_ident()
        self._path = Path(asked["path"])
        self._until = now + min(float(asked["seconds"]), MOST_SECONDS)
        self._profiler = self._start()
        ranges.install(model, self._patch_set, self._guard, *record_functions(range_name))

    def _end(self) -> None:
        profiler = self._drop()
        profiler.stop()
        profiler.export_chrome_trace(str(self._path))
        profile_request.answer(
            self._folder, {"ok": True, "text": str(self._path), "instrumented_graphs": self._instrumented_graphs()}
        )

    def _drop(self) -> Any:
        profiler, self._profiler = self._profiler, None
        self._patch_set.undo()
        return profiler


def _host_profiles() -> bool:
    """Tell whether LightLLM has a profiler of its own (since June 2026)."""
    start = json.loads(os.environ.get("LIGHTLLM_START_ARGS") or "{}")
    return bool(start.get("enable_profiling"))


def range_name(label: str) -> str:
    """Return the name of an operator's range in the profiler's trace."""
    return f"lightllm_otel: {label}"
