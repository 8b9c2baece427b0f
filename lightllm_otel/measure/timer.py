"""The timer of one model: opens and closes steps, takes marks between operators, reads what is done, never waits.

All calls come from the host's model threads. The hooks of operators ask one question, ``timer.armed``; it is a step
only inside a forward whose operators are timed.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

from lightllm_otel.measure.calibration import Calibration
from lightllm_otel.measure.clock import Clock, Handle
from lightllm_otel.measure.harvest import harvest
from lightllm_otel.measure.marks import Mark, Marks
from lightllm_otel.measure.pool import Pool
from lightllm_otel.measure.sampling import Sampling
from lightllm_otel.measure.step import Step, Work
from lightllm_otel.vocabulary import DropReason, IdleReason, Mode, Operator

PENDING_STEPS = 64
SAMPLED_STEPS = 6
UNREAD_STEPS = 3


class Sink(Protocol):
    """Where finished steps go: the ring, or a list in tests."""

    @property
    def fits(self) -> int:
        """The most intervals that one step may have."""

    def write(self, step: np.ndarray, intervals: np.ndarray) -> None: ...

    def enter(self, number: int, phase: int, wall_time: float) -> None: ...

    def leave(self) -> None: ...

    def count(self, dropped: list[int], sampled: int, hook_seconds: float, oldest_unread: float) -> None: ...


class Timer:
    """``operators``: whether operators are timed at all. ``boundaries``: the most that one step can have."""

    def __init__(
        self,
        clock: Clock,
        sink: Sink,
        sampling: Sampling,
        operators: bool = True,
        boundaries: int = 512,
        calibration: Calibration | None = None,
        wall_clock: Callable[[], float] = time.time,
        cpu_clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.armed: Step | None = None
        self.completed = 0
        self.failed = False
        self.marks = Marks()
        self._clock = clock
        self._sink = sink
        self._sampling = sampling
        self._operators = operators
        self.calibration = calibration or Calibration()
        self._wall = wall_clock
        self._cpu = cpu_clock
        self._ends = Pool(clock, 2, PENDING_STEPS + 2, ready=8)
        self._boundaries = Pool(clock, min(boundaries, sink.fits), SAMPLED_STEPS, ready=3 if operators else 0)
        self._record = clock.record
        self._done = clock.done
        self._pending: collections.deque[Step] = collections.deque()
        self._awaiting_sample: dict[int, Step] = {}
        self._previous_end: list[Handle] | None = None
        self._no_requests = True
        self._entered: Step | None = None
        self._sampled_steps = 0
        self._hook_seconds = 0.0
        self._dropped = [0] * len(DropReason)
        self.gap = self.marks.code(Mark(Operator.GAP))
        self._sampling_mark = self.marks.code(Mark(Operator.SAMPLING))

    # A step, in the order of calls ---------------------------------------------------------------------------------

    def enter(self, work: Work) -> Step | None:
        """A forward begins. None when too many steps are unread: this one is not timed, and counted."""
        began = self._cpu()
        self._close(self._awaiting_sample.pop(threading.get_ident(), None))
        ends = self._ends.take() if len(self._pending) < PENDING_STEPS else None
        if ends is None:
            self._drop(DropReason.PENDING_FULL)
            return None
        step = Step(self.completed, work, ends, self._clock.stream(), self._wall())
        step.idle_reason = IdleReason.NO_REQUESTS if self._no_requests else IdleReason.HOST
        self._no_requests = False
        self._entered = step
        self._sink.enter(step.number, work.phase.code, step.wall_time)
        self._record(ends[0], step.stream)
        if self._operators and self._sampling.due(step.number, work.phase, work.tokens):
            self._arm(step)
        self._hook_seconds += self._cpu() - began
        return step

    def _arm(self, step: Step) -> None:
        if self.armed is not None:  # another thread is inside a sampled forward: its marks and ours would mix
            self.disarm(self.armed)
            return
        block = self._boundaries.take()
        if block is None:
            self._drop(DropReason.PENDING_FULL)
            return
        step.boundaries, step.capacity, step.sampled = block, len(block), True
        self.mark(step, self.gap)
        self.armed = step

    def disarm(self, step: Step | None) -> None:
        """This step's operators cannot be told apart after all (a graph is replayed or captured)."""
        if step is not None and step.sampled:
            step.sampled = False
            self._boundaries.give(step.boundaries)
            step.boundaries = []
        if self.armed is step:
            self.armed = None

    def mark(self, step: Step, code: int) -> None:
        """A boundary: the interval since the previous one belongs to the mark with this code."""
        at = len(step.codes)
        if at >= step.capacity:
            self._drop(DropReason.TOO_LARGE)
            self.disarm(step)
            return
        boundaries = step.boundaries
        starved = at > 0 and self._done(boundaries[at - 1])
        self._record(boundaries[at], step.stream)
        step.codes.append(code)
        step.starved.append(starved)

    def leave(self, step: Step | None) -> None:
        """The forward has returned: its kernels are launched. What comes next may be sampling, or nothing."""
        began = self._cpu()
        self.completed += 1  # of an untimed step, too: all ranks count alike
        if step is None:
            return
        if self.armed is step:
            self.armed = None
        self._record(step.ends[1], step.stream)
        self._pending.append(step)
        self._awaiting_sample[threading.get_ident()] = step
        self._hook_seconds += self._cpu() - began
        if len(self._pending) > UNREAD_STEPS:  # a model without sampling never comes past the usual moment
            self.read()

    def abandon(self, step: Step | None) -> None:
        """The forward raised. The host repeats it, with the same number."""
        if step is None:
            return
        self.disarm(step)
        self._ends.give(step.ends)
        if self._entered is step:
            self._sink.leave()
        self._drop(DropReason.ERROR)

    def replayed(self, padded: int) -> None:
        """The forward of this thread replays a CUDA graph in which ``padded`` requests are computed."""
        step = self._entered
        if step is not None:
            self.disarm(step)
            step.mode, step.padded = Mode.GRAPH, padded

    def enter_sampling(self) -> Step | None:
        """Sampling begins for the step that this thread left last; None when there is none."""
        step = self._awaiting_sample.pop(threading.get_ident(), None)
        if step is not None and step.sampled:
            self.mark(step, self.gap)
        return step

    def leave_sampling(self, step: Step) -> None:
        """Everything of the step is launched; the host is about to wait for it, a good moment to read older ones."""
        if step.sampled:
            self.mark(step, self._sampling_mark)
        self._record(step.ends[1], step.stream)
        self._close(step)
        self.read()

    def tick(self, idle: bool = True) -> None:
        """The host's loop came round without a step. ``idle``: because there was nothing to do."""
        self._no_requests = self._no_requests or idle
        if self._awaiting_sample:
            self._close(self._awaiting_sample.pop(threading.get_ident(), None))
        if self._pending:
            self.read()

    def fail(self) -> None:
        """Something of ours raised: no more steps are opened, the host goes on as if we were not there."""
        self.failed = True
        self.armed = None
        # What is unread stays so; it must not look like a step that is stuck.
        self._dropped[DropReason.ERROR.code] += len(self._pending)
        self._pending.clear()
        self._sink.leave()
        self._sink.count(self._dropped, self._sampled_steps, self._hook_seconds, 0.0)

    # Reading -------------------------------------------------------------------------------------------------------

    def read(self) -> None:
        """Hand every step whose end the GPU has passed to the sink, oldest first."""
        began = self._cpu()
        pending = self._pending
        while pending and pending[0].closed and self._done(pending[0].ends[1]):
            self._finish(pending.popleft())
        self._hook_seconds += self._cpu() - began
        oldest = pending[0].wall_time if pending else 0.0
        self._sink.count(self._dropped, self._sampled_steps, self._hook_seconds, oldest)

    def _finish(self, step: Step) -> None:
        try:
            self._sink.write(*harvest(step, self._previous_end, self._clock, self.marks, self.calibration))
            self._sampled_steps += step.sampled
            # Of the marks only the recording itself is known without a clock call around each.
            self._hook_seconds += self.calibration.record_cost * len(step.codes)
        finally:
            if step.sampled:
                self._boundaries.give(step.boundaries)
            if self._previous_end is not None:
                self._ends.give(self._previous_end)
            self._previous_end = step.ends
            if self._entered is step:
                self._entered = None
                self._sink.leave()

    def _close(self, step: Step | None) -> None:
        if step is not None:
            step.closed = True

    def _drop(self, reason: DropReason) -> None:
        self._dropped[reason.code] += 1
