"""Pending steps: launched, and not yet read."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable
from typing import Optional

from lightllm_otel.records.vocabulary import DropReason, StepOnlyReason
from lightllm_otel.worker.gpu.clock import Clock, Handle
from lightllm_otel.worker.gpu.handles import Pool
from lightllm_otel.worker.gpu.recorder_pool import RecorderPool
from lightllm_otel.worker.gpu.sink import Sink
from lightllm_otel.worker.gpu.step import Step
from lightllm_otel.worker.gpu.step_reader import NO_INTERVALS, StepReader
from lightllm_otel.worker.gpu.steps_in_flight import StepsInFlight
from lightllm_otel.worker.gpu.timestamp_kernels import Overwritten

UNREAD_STEPS = 8  # steps that are read at once: this costs little more than reading one


class PendingSteps:
    """FIFO of the steps whose end the GPU may not have passed; :meth:`read` writes the finished ones to the sink.

    ``steps``: the oldest first. ``sampled``: how many of them have a boundary recorder, whose events are needed again soon.
    ``hook_seconds``: CPU time of the plugin on the model's threads. ``step_only``: sampled steps without operators, by reason.
    """

    def __init__(
        self, clock: Clock, sink: Sink, step_reader: StepReader, in_flight: StepsInFlight, ends: Pool,
        recorders: RecorderPool, cpu_clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.steps: collections.deque[Step] = collections.deque()
        self.append = self.steps.append
        self.sampled = 0
        self.hook_seconds = 0.0
        self.step_only = [0] * len(StepOnlyReason)
        self.dropped = [0] * len(DropReason)
        self._sampled_steps = 0
        self._sink = sink
        self._step_reader = step_reader
        self._in_flight = in_flight
        self._ends = ends
        self._recorders = recorders
        self._cpu = cpu_clock
        self._done = clock.done
        self._previous_end: Optional[list[Handle]] = None
        self._reading = threading.Lock()

    def drop(self, reason: DropReason) -> None:
        """Count a step that is not recorded, or a sampled step whose operators are lost."""
        self.dropped[reason.code] += 1

    def read_some(self) -> None:
        """Read if it is worth it. Called when much is launched and the host is about to wait."""
        if self.sampled or len(self.steps) >= UNREAD_STEPS:
            self.read()

    def read(self) -> None:
        """Write every step whose end the GPU has passed to the sink, the oldest first. Never waits for the GPU."""
        if not self._reading.acquire(blocking=False):  # the other thread is reading
            return
        try:
            began = self._cpu()
            steps = self.steps
            while steps:
                step = steps[0]
                if not step.closed or not (step.lost or self._done(step.ends[1])):
                    break
                steps.popleft()
                if step.lost:
                    self._drop_lost(step)
                elif step.recorder is None:
                    self._finish_plain(step)
                else:
                    self._finish(step)
            self.hook_seconds += self._cpu() - began
            self.publish(steps[0].wall_time if steps else 0.0)
        finally:
            self._reading.release()

    def give_up(self) -> None:
        """Drop all pending steps after an error, so that none of them looks stuck. Their events are not reused."""
        self.dropped[DropReason.ERROR.code] += len(self.steps)
        self.steps.clear()
        self.sampled = 0

    def drop_rest(self) -> None:
        """Drop the steps that :meth:`read` has left, because live control says off."""
        for step in self.steps:
            self._recorders.give_back(step)
            self._ends.give(step.ends)
            self.drop(DropReason.CONTROL)
        self.steps.clear()
        self.sampled = 0
        if self._previous_end is not None:  # the time until control says on is not idle time of the GPU
            self._ends.give(self._previous_end)
            self._previous_end = None

    def publish(self, oldest_unread: float = 0.0) -> None:
        """Write the counters to the sink. ``oldest_unread``: Unix time at which the oldest unread step began, or 0."""
        self._sink.count(self.dropped, self.step_only, self._sampled_steps, self.hook_seconds, oldest_unread)

    def _drop_lost(self, step: Step) -> None:
        self.sampled -= step.recorder is not None
        self._recorders.give_back(step)
        self._ends.give(step.ends)
        self._in_flight.remove(step)
        self.drop(DropReason.ERROR)

    def _finish_plain(self, step: Step) -> None:
        """Write a step whose operators are not timed, as nearly all are. It does what :meth:`_finish` does, and no more."""
        previous = self._previous_end
        self._sink.write(self._step_reader.record(step, previous), NO_INTERVALS)
        if previous is not None:
            self._ends.give(previous)
        self._previous_end = step.ends
        in_flight = self._in_flight
        if in_flight.get(step.thread) is step:
            in_flight.remove(step)

    def _finish(self, step: Step) -> None:
        try:
            sampled = step.recorder is not None
            try:
                self._sink.write(*self._step_reader(step, self._previous_end, sampled))
            except Overwritten:
                self.drop(DropReason.OVERWRITTEN)
                sampled = False
                self._sink.write(*self._step_reader(step, self._previous_end, sampled))
            self._sampled_steps += sampled
            if step.recorder is not None:
                # No clock is read around a boundary, so only the calibrated time of recording it can be added.
                self.hook_seconds += self._step_reader.calibration.record_cost * len(step.recorder.codes)
        finally:
            self.sampled -= step.recorder is not None
            self._recorders.give_back(step)
            if self._previous_end is not None:
                self._ends.give(self._previous_end)
            self._previous_end = step.ends
            self._in_flight.remove(step)
