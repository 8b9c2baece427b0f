"""Steps in flight: the newest step of each thread, until the host has waited for it."""

from __future__ import annotations

from typing import Optional

from lightllm_otel.worker.gpu.sink import Sink
from lightllm_otel.worker.gpu.step import Step


class StepsInFlight(dict[int, Step]):
    """Steps by the thread that launched them, the oldest first; the ring's header shows the oldest to other processes.

    It is a dictionary because every step is added and removed on the host's path, where each further call costs time.
    Whoever adds a step calls :meth:`show_oldest` afterwards, unless ``shown`` is a step of another thread.
    """

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self.shown: Optional[Step] = None
        self._sink = sink

    def remove(self, step: Step) -> None:
        """Remove a step for which the host has waited. A step that its thread has already replaced is ignored."""
        if self.get(step.thread) is step:
            del self[step.thread]
            if self.shown is step:
                self.show_oldest()

    def remove_all(self) -> None:
        """Remove all steps, so that none of them looks stuck."""
        self.clear()
        self.show_oldest()

    def show_oldest(self) -> None:
        """Name the oldest step in the ring's header: if it is stuck, it keeps the younger ones behind it."""
        for oldest in self.values():
            self.shown = oldest
            self._sink.enter(oldest.number, oldest.work.phase.code, oldest.wall_time)
            return
        self.shown = None
        self._sink.leave()
