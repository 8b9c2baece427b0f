"""A delay inside each step that depends on its batch, so that a step whose time belongs to another one is seen."""

from __future__ import annotations

import time
from typing import Any

from inside_model.markers import Replaced, sizes_of

LEVELS = 3  # neighbouring batches never have the same delay


def units_of(batch: int) -> int:
    """How many units a step of this batch is delayed."""
    return 1 + batch % LEVELS


class Spins:
    """Delay ``_decode`` and ``_prefill`` of a model, which its ``forward`` calls, by a kernel on the current stream."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._replaced = Replaced()
        self._noted: list[dict[str, Any]] = []

    def install(self, unit_us: float) -> None:
        """``unit_us``: microseconds of a unit."""
        cycles = _cycles_of(unit_us)
        for name in ("_decode", "_prefill"):
            host = getattr(self._model, name, None)
            if callable(host):
                self._replaced.put(self._model, name, self._delayed(host, cycles, unit_us))

    def _delayed(self, host: Any, cycles: int, unit_us: float) -> Any:
        def delayed(*args: Any, **kwargs: Any) -> Any:
            sizes = sizes_of(args[0] if args else next(iter(kwargs.values())))
            units = units_of(sizes["batch"])
            self._noted.append({"at": time.time_ns(), "units": units, **sizes})
            if cycles:
                import torch

                torch.cuda._sleep(units * cycles)
            else:
                time.sleep(units * unit_us * 1e-6)
            return host(*args, **kwargs)

        return delayed

    def remove(self) -> None:
        self._replaced.undo()

    def take(self) -> list[dict[str, Any]]:
        """Return what was noted since the last time."""
        noted, self._noted = self._noted, []
        return noted


def _cycles_of(unit_us: float) -> int:
    """Measure how many cycles of the GPU's clock a unit has; 0 without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return 0
    cycles = 2_000_000
    torch.cuda._sleep(cycles)  # the first launch loads the kernel
    event_class: Any = torch.cuda.Event
    before, after = event_class(enable_timing=True), event_class(enable_timing=True)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        before.record()
        torch.cuda._sleep(cycles)
        after.record()
    after.synchronize()
    return max(int(cycles * unit_us / (1e3 * before.elapsed_time(after))), 1)
