"""What the benchmark asks of a model process while it serves: a trace by CUPTI, markers in it, a delay in each step.

The benchmark leaves ``ask.json`` in the folder, a thread of this process answers with ``answer.json``. The thread looks a
few times a second and does nothing in between.
"""

from __future__ import annotations

import json
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from inside_model.markers import Annotations, ForwardMarkers
from inside_model.own_time import OwnTimes
from inside_model.spin import Spins

ASK, ANSWER = "ask.json", "answer.json"
POLL_SECONDS = 0.2


class Observer(threading.Thread):
    """``backend``: LightLLM's, whose model is looked at."""

    def __init__(self, folder: Path, backend: Any) -> None:
        super().__init__(daemon=True, name="benchmark")
        self._folder, self._backend = folder, backend
        self._profiler: Any = None
        self._markers = ForwardMarkers(backend.model)
        self._annotations = Annotations(backend)
        self._spins = Spins(backend.model)
        self._own_times = OwnTimes()
        self._answered = 0

    def run(self) -> None:
        while True:
            time.sleep(POLL_SECONDS)
            try:
                ask = json.loads((self._folder / ASK).read_text())
            except (OSError, ValueError):
                continue
            if ask["number"] != self._answered:
                self._answered = ask["number"]
                self._answer(ask)

    def _answer(self, ask: dict[str, Any]) -> None:
        try:
            said = {"result": getattr(self, f"do_{ask['do']}")(**ask["with"])}
        except Exception:  # noqa: BLE001 - the one who asks reports it
            said = {"problem": traceback.format_exc()}
        new = self._folder / f"{ANSWER}.new"
        new.write_text(json.dumps({"number": ask["number"], **said}))
        new.replace(self._folder / ANSWER)

    # What can be asked -----------------------------------------------------------------------------------------------

    def do_start_trace(self) -> None:
        """CUPTI from here on, and a marker before each forward. The first marker in the trace is on the default stream."""
        import torch
        from torch.profiler import ProfilerActivity, profile

        self._profiler = profile(activities=[ProfilerActivity.CUDA])
        self._profiler.__enter__()
        if torch.cuda.is_available():
            torch.cuda._sleep(1)
        self._markers.install()

    def do_stop_trace(self, path: str) -> dict[str, Any]:
        """Write the trace. Returns when each forward with a marker was entered (Unix time, in nanoseconds) and with what."""
        import torch

        self._markers.remove()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._profiler.__exit__(None, None, None)
        self._profiler.export_chrome_trace(path)
        self._profiler = None
        return {"forwards": self._markers.take()}

    def do_annotate(self, on: bool) -> dict[str, Any]:
        """Markers around each method that is an operator, and no CUDA graphs meanwhile. Returns their names in order."""
        if on:
            self._annotations.install()
            return {}
        self._annotations.remove()
        return {"calls": self._annotations.take()}

    def do_spin(self, on: bool, unit_us: float = 0.0) -> dict[str, Any]:
        """A kernel in each step that lasts as long as the step's batch says. Returns the forwards and their spins."""
        if on:
            self._spins.install(unit_us)
            return {}
        self._spins.remove()
        return {"forwards": self._spins.take()}

    def do_own_times(self, on: bool) -> dict[str, Any]:
        """What the plugin's hooks take by themselves. Returns it by hook, and the hooks that cannot be looked at."""
        if on:
            self._own_times.install()
            return {}
        self._own_times.remove()
        return {"hooks": self._own_times.take(), "missed": self._own_times.missed}

    def do_memory(self) -> dict[str, Any]:
        """MiB of the GPU that torch has reserved, and that are used by all processes."""
        import torch

        if not torch.cuda.is_available():
            return {}
        free, total = torch.cuda.mem_get_info()
        return {
            "reserved_mib": round(torch.cuda.memory_reserved() / 2**20, 1),
            "used_mib": round((total - free) / 2**20, 1),
        }
