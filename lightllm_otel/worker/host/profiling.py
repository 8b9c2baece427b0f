"""torch.profiler for a moment, on request: the kernels of a running model process inside our operators.

A profiler is what this plugin is there to replace, and it slows the server while it runs: it does so when its owner asks for it,
for some seconds, on the first rank only. Operators become ranges of the profiler's own, so that its trace has every kernel in the
operator that launched it. Python launches none of the kernels of a replayed CUDA graph; those of an instrumented graph lie
between its timestamps, so the answer says which operators its intervals are.
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


class Kernels:
    """Asked once a second on the model's thread, between steps; ``start`` makes a running profiler.

    ``instrumented graphs``: of each instrumented graph the names of its intervals' operators.
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
        """Begin what was asked for, or end what has run for its time. Whatever fails is answered, never raised."""
        now = time.monotonic() if now is None else now
        try:
            if self._profiler is not None:
                # torch's profiler ends on the thread that began it: on another it would answer nothing and stay on.
                if now >= self._until and threading.get_ident() == self._thread:
                    self._end()
            elif (asked := profile_request.take(self._folder)) is not None:
                self._begin(asked, model, now)
        except Exception as error:  # noqa: BLE001 - a profiler that fails is no reason to stop measuring
            with contextlib.suppress(Exception):  # it may not even have started
                self._drop().stop()
            log.warning("kernels cannot be captured: %s", error)
            profile_request.answer(self._folder, {"ok": False, "text": str(error) or type(error).__name__})

    def _begin(self, asked: dict[str, Any], model: Any, now: float) -> None:
        if _host_profiles():
            raise RuntimeError("the server was started with --enable_profiling, and two profilers cannot run at once")
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
    """How an operator is called in the profiler's trace."""
    return f"lightllm_otel: {label}"
