"""The timer of one model: opens and closes steps, takes marks between operators, reads what is done, never waits.

All calls come from the host's model threads; since v1.1.0 two of them take turns, with two steps in flight. Each thread has
its own step. The hooks of operators ask one question, ``timer.armed``; it is a marking only inside a forward whose
operators are timed, or while a graph is captured, and says whose thread it belongs to.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from lightllm_otel.records import progress
from lightllm_otel.records.vocabulary import DropReason, IdleReason, Mode, Operator, StepOnlyReason
from lightllm_otel.worker.gpu.boundaries import Boundary, BoundaryCodes
from lightllm_otel.worker.gpu.boundary_recorder import BoundaryRecorder, EagerRecorder
from lightllm_otel.worker.gpu.clock import Clock, Handle
from lightllm_otel.worker.gpu.handles import Pool
from lightllm_otel.worker.gpu.step import GraphLayout, Step, Work
from lightllm_otel.worker.gpu.step_reader import NO_INTERVALS, StepReader
from lightllm_otel.worker.gpu.timestamp_kernels import Overwritten

PENDING_STEPS = 64
SAMPLED_STEPS = 6
UNREAD_STEPS = 8  # are read in one go: that costs little more than a single one
UNREAD_SAMPLED = 3


Begun = tuple[list[Handle], Any, float]
"""The events before and after a step, its stream, and the time on the wall."""


class Sink(Protocol):
    """Where finished steps go: the ring, or a list in tests."""

    @property
    def fits(self) -> int:
        """The most intervals that one step may have."""

    def write(self, step: bytes, intervals: np.ndarray) -> None: ...

    def enter(self, number: int, phase: int, wall_time: float) -> None: ...

    def leave(self) -> None: ...

    @property
    def progress(self) -> progress.Words:
        """The words that marks set: :mod:`lightllm_otel.records.progress`."""

    def count(
        self, dropped: list[int], whole: list[int], sampled: int, hook_seconds: float, oldest_unread: float
    ) -> None: ...


class Timer:
    """``operators``: whether operators are timed at all. ``boundaries``: the most that one step can have."""

    def __init__(
        self,
        clock: Clock,
        sink: Sink,
        operators: bool = True,
        boundaries: int = 512,
        wall_clock: Callable[[], float] = time.time,
        cpu_clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.armed: BoundaryRecorder | None = None
        self.failed = False
        self.boundary_codes = BoundaryCodes()
        self.gap = self.boundary_codes.code(Boundary(Operator.GAP))
        self.part_gap = self.boundary_codes.part(self.gap)
        self._sampling_boundary = self.boundary_codes.code(Boundary(Operator.SAMPLING))
        # Stands for a whole replay between two events; the step reader puts what the graph's own timestamps say in its place.
        self._graph_boundary = self.boundary_codes.code(Boundary(Operator.GAP, layer=-2))
        self.step_reader = StepReader(clock, self.boundary_codes, self._graph_boundary, self.gap)
        self.boundaries = min(boundaries, sink.fits)
        self.whole = [0] * len(StepOnlyReason)
        self._clock = clock
        self._sink = sink
        self._wall = wall_clock
        self._cpu = cpu_clock
        self._ends = Pool(clock, 2, PENDING_STEPS + 2, ready=8)
        self._boundaries = Pool(clock, self.boundaries, SAMPLED_STEPS, ready=3 if operators else 0)
        self._record = clock.record
        self._stream = clock.stream
        self._done = clock.done
        self._other = self.boundary_codes.code(Boundary(Operator.OTHER))
        self._pending: collections.deque[Step] = collections.deque()
        self._previous_end: list[Handle] | None = None
        self._no_requests = True
        self.launched_steps: dict[int, Step] = {}
        """By thread: the step whose forward has returned, while more of its work may come."""
        # By thread as well: the step whose forward is in progress; the one that the host has not waited for yet; how long its
        # scheduler took before the step to come.
        self._running: dict[int, Step] = {}
        self._in_flight: dict[int, Step] = {}
        self._scheduling: dict[int, float] = {}
        # Threads whose steps end with end_step: for them nothing before it needs to record an end.
        self._ends_late: set[int] = set()
        self._threads: set[int] = set()
        self._shown: Step | None = None
        self._reading = threading.Lock()
        # Of the pending steps: those whose operators are timed, with events that are soon wanted again.
        self._marked = 0
        self._sampled_steps = 0
        self._hook_seconds = 0.0
        self._dropped = [0] * len(DropReason)

    # A step, in the order of calls ---------------------------------------------------------------------------------

    def enter(self, work: Work, number: int, due: bool) -> Step | None:
        """Forward ``number`` begins; ``due``: its operators are timed.

        None when too many steps are unread: this one is not timed, and counted.
        """
        began = self._cpu()
        ends = self.ends()
        if ends is None:
            self._drop(DropReason.PENDING_FULL)
            return None
        step = self._open(self.begin(ends), work, number)
        self._running[step.thread] = step
        if due:
            self._arm(step)
        self._hook_seconds += self._cpu() - began
        return step

    def ends(self) -> list[Handle] | None:
        """The events of a step to come; None when too many steps are unread."""
        return self._ends.take() if len(self._pending) < PENDING_STEPS else None

    def give(self, ends: list[Handle]) -> None:
        """The events of a step that did not come."""
        self._ends.give(ends)

    def begin(self, ends: list[Handle]) -> Begun:
        """What must lie before the launch of a forward, and nothing else: the GPU waits for us here.

        :meth:`launched` follows when the forward has returned, or :meth:`forget` when it has raised.
        """
        stream = self._stream()
        self._record(ends[0], stream)
        return ends, stream, self._wall()

    def launched(self, begun: Begun | None, work: Work, number: int, padded: int) -> None:
        """A forward that began with :meth:`begin` has returned; its operators are not timed. None: it had no events.

        ``padded``: of the graph that it has replayed, or 0.
        """
        if begun is None:
            self._drop(DropReason.PENDING_FULL)
            return
        began = self._cpu()
        step = self._open(begun, work, number)
        thread = step.thread
        if padded:
            step.mode, step.padded = Mode.GRAPH, padded
        if thread not in self._ends_late:
            self._record(step.ends[1], step.stream)
        self._pending.append(step)
        self.launched_steps[thread] = step
        self._hook_seconds += self._cpu() - began
        if len(self._pending) > 2 * UNREAD_STEPS:
            self.read()

    def forget(self, begun: Begun) -> None:
        """A forward that began with :meth:`begin` has raised."""
        self._ends.give(begun[0])
        self._drop(DropReason.ERROR)

    def _open(self, begun: Begun, work: Work, number: int) -> Step:
        ends, stream, wall_time = begun
        thread = threading.get_ident()
        if thread in self.launched_steps:
            self._close_without_end(thread)
        step = Step(number, work, ends, stream, wall_time, thread)
        if self._no_requests:
            step.idle_reason, self._no_requests = IdleReason.NO_REQUESTS, False
        else:
            step.idle_reason = IdleReason.HOST
        if self._scheduling:
            step.scheduling = self._scheduling.pop(thread, 0.0)
        flying = self._in_flight
        flying.pop(thread, None)  # so that the oldest comes first
        flying[thread] = step
        shown = self._shown
        if shown is None or shown.thread == thread:  # else the other thread's is older
            self._show()
        return step

    def _arm(self, step: Step) -> None:
        if self.armed is not None:  # another thread's forward is in progress, and its boundaries would be ours as well
            self.whole[StepOnlyReason.OVERLAP.code] += 1
            return
        block = self._boundaries.take()
        if block is None:
            self._drop(DropReason.PENDING_FULL)
            return
        step.recorder = self.armed = EagerRecorder(
            self._clock, step.ends[0], self.gap, block, step.stream, step.work.pairs, self._cpu,
            self._sink.progress, self.boundary_codes.reaches, step.number,
        )  # fmt: skip

    def disarm(self, reason: StepOnlyReason) -> None:
        """The operators of this thread's forward cannot be told apart; counted if they were due."""
        step = self._running.get(threading.get_ident())
        if step is not None and step.recorder is not None:
            self._disarm(step)
            self.whole[reason.code] += 1
            self._forget_boundaries(step)
            progress.forget(self._sink.progress)

    def _disarm(self, step: Step) -> None:
        if self.armed is step.recorder:
            self.armed = None

    def _forget_boundaries(self, step: Step) -> None:
        if step.recorder is not None:
            self._boundaries.give(step.recorder.block)
            step.recorder = None

    def leave(self, step: Step | None, padded: int = 0) -> None:
        """The forward has returned: its kernels are launched. What comes next may be sampling, or nothing.

        ``padded``: the batch of the plain graph that it has replayed, or 0.
        """
        if step is None:
            self._running.pop(threading.get_ident(), None)
            return
        began = self._cpu()
        thread = step.thread
        self._running.pop(thread, None)
        if padded:
            step.mode, step.padded = Mode.GRAPH, padded
        if step.recorder is not None:
            self._disarm(step)
            step.recorder.launched()
            if step.recorder.full:
                self._drop(DropReason.TOO_LARGE)
                self._forget_boundaries(step)
        if thread not in self._ends_late:
            self._record(step.ends[1], step.stream)
        self._pending.append(step)
        self._marked += step.recorder is not None
        self.launched_steps[thread] = step
        self._hook_seconds += self._cpu() - began
        # A model without sampling never comes past the usual moment.
        if self._marked > UNREAD_SAMPLED or len(self._pending) > 2 * UNREAD_STEPS:
            self.read()

    def abandon(self, step: Step | None) -> None:
        """The forward raised. The host may repeat it, with the same number."""
        self._running.pop(threading.get_ident(), None)
        if step is None:
            return
        self._disarm(step)
        self._forget_boundaries(step)
        progress.forget(self._sink.progress)
        self._ends.give(step.ends)
        self._landed(step)
        self._drop(DropReason.ERROR)

    def graph(self, padded: int, instrumented: bool) -> Step | None:
        """This thread's forward will replay a graph that computes ``padded`` requests, a plain or an instrumented one.

        Returns the step if its operators are read from the graph; :meth:`before_replay` and :meth:`after_replay` follow.
        """
        step = self._running.get(threading.get_ident())
        if step is None:
            return None
        step.mode, step.padded = Mode.GRAPH, padded
        if not instrumented:
            self.disarm(StepOnlyReason.NOT_INSTRUMENTED)
            return None
        self._disarm(step)
        return step if step.recorder is not None else None

    def prefill_graph(self) -> None:
        """This thread's forward will replay graphs of a prefill: Python sees little of its operators."""
        step = self._running.get(threading.get_ident())
        if step is not None:
            step.mode = Mode.GRAPH
            self.disarm(StepOnlyReason.PREFILL_GRAPH)

    def before_replay(self, step: Step) -> None:
        """What the host launches between the entry of the forward and the replay belongs to no operator."""
        if step.recorder is not None:
            step.recorder.record(self.gap)

    def after_replay(self, step: Step, graph_layout: GraphLayout, replay: int) -> None:
        """The replay of that number has been launched."""
        if step.recorder is not None:
            step.recorder.record(self._graph_boundary)
            step.graph_layout, step.replay = graph_layout, replay

    def enter_sampling(self) -> Step | None:
        """Sampling begins for the step that this thread left last; None when there is none."""
        step = self.launched_steps.get(threading.get_ident())
        if step is None or step.sampled:
            return None
        step.sampled = True
        if step.recorder is not None:
            step.recorder.record(self.gap)
        return step

    def sampling_is_plain(self, step: Step) -> bool:
        """Tell whether nothing has to be recorded around the sampling of this step: its end comes later, and says enough."""
        return step.recorder is None and step.thread in self._ends_late

    def leave_sampling(self, step: Step, ends: bool = True) -> None:
        """Sampling is launched. ``ends``: nothing else of the step follows, so the host is about to wait for it."""
        if not ends:
            if step.recorder is not None:
                step.recorder.record(self._sampling_boundary)
            if step.thread not in self._ends_late:
                self._record(step.ends[1], step.stream)
            return
        if step.recorder is not None:
            step.recorder.end(self._sampling_boundary, step.ends[1])
        self._record(step.ends[1], step.stream)
        self.launched_steps.pop(step.thread, None)
        step.closed = True
        self.read_some()

    def end_step(self) -> Step | None:
        """Everything of the step that this thread left last is launched; None when there is none.

        What came since sampling (the host copies tokens, drafts run) is work of the step that no operator claims.
        """
        thread = threading.get_ident()
        step = self.launched_steps.pop(thread, None)
        if step is None:
            return None
        if step.recorder is not None:
            step.recorder.end(self._other, step.ends[1])
        self._record(step.ends[1], step.stream)
        self._ends_late.add(thread)
        step.closed = True
        return step

    def _close_without_end(self, thread: int) -> None:
        """The thread goes on without having said that its step has ended: what was recorded last is its end."""
        step = self.launched_steps.pop(thread)
        if thread in self._ends_late:  # there it has always said so, and nothing was recorded
            self._ends_late.discard(thread)
            step.lost = True
        step.closed = True

    def read_some(self) -> None:
        """A good moment to read: much is launched, and the host is about to wait."""
        if self._marked or len(self._pending) >= UNREAD_STEPS:
            self.read()

    def adopt_thread(self) -> None:
        """The calling thread runs forwards, or is about to."""
        thread = threading.get_ident()
        if thread not in self._threads:
            self._threads.add(thread)
            self._clock.adopt_thread()

    def came_round(self) -> None:
        """This thread's loop comes round: the host has waited for the step that the thread launched."""
        thread = threading.get_ident()
        step = self._in_flight.get(thread)
        if step is None:
            self.adopt_thread()
        elif step.lost or step.sampled or self._done(step.ends[1]):  # it waits for what it has sampled
            self._landed(step)

    def scheduled(self, seconds: float) -> None:
        """The host's scheduler took so long on this thread before the step to come."""
        self._scheduling[threading.get_ident()] = seconds

    def tick(self, idle: bool = True) -> None:
        """The host's loop came round without a step. ``idle``: because there was nothing to do."""
        self._no_requests = self._no_requests or idle
        thread = threading.get_ident()
        if thread in self.launched_steps:
            self._close_without_end(thread)
        if self._pending:
            self.read()

    def fail(self) -> None:
        """Something of ours raised: no more steps are opened, the host goes on as if we were not there."""
        self.failed = True
        self.armed = None
        # What is unread stays so; it must not look like a step that is stuck.
        self._dropped[DropReason.ERROR.code] += len(self._pending)
        self._pending.clear()
        self._marked = 0
        self._land_all()
        self._count(0.0)

    def pause(self) -> None:
        """Live control says off: what is done is read, the rest is let go, and nothing looks stuck."""
        for step in self._pending:
            step.closed = True
            step.lost = step.lost or (step.thread in self._ends_late and step.thread in self.launched_steps)
        self.launched_steps.clear()
        self.read()
        for step in self._pending:
            self._forget_boundaries(step)
            self._ends.give(step.ends)
            self._drop(DropReason.CONTROL)
        self._pending.clear()
        self._marked = 0
        if self._previous_end is not None:  # the time until control says on is not idle time of the GPU
            self._ends.give(self._previous_end)
            self._previous_end = None
        self._no_requests = True
        self._land_all()
        self._count(0.0)

    # What is in flight, for whoever looks from outside -----------------------------------------------------------------

    def _landed(self, step: Step) -> None:
        if self._in_flight.get(step.thread) is step:
            del self._in_flight[step.thread]
            if self._shown is step:
                self._show()

    def _land_all(self) -> None:
        self._in_flight.clear()
        self._running.clear()
        self.launched_steps.clear()
        self._show()

    def _show(self) -> None:
        """The ring's header names the oldest step in flight: one that is stuck keeps the younger ones behind it."""
        for oldest in self._in_flight.values():
            self._shown = oldest
            self._sink.enter(oldest.number, oldest.work.phase.code, oldest.wall_time)
            return
        self._shown = None
        self._sink.leave()

    # Reading -------------------------------------------------------------------------------------------------------

    def read(self) -> None:
        """Hand every step whose end the GPU has passed to the sink, oldest first."""
        if not self._reading.acquire(blocking=False):  # the other thread does it just now
            return
        try:
            began = self._cpu()
            pending = self._pending
            while pending:
                step = pending[0]
                if not step.closed or not (step.lost or self._done(step.ends[1])):
                    break
                pending.popleft()
                if step.lost:
                    self._lose(step)
                elif step.recorder is None:
                    self._finish_plain(step)
                else:
                    self._finish(step)
            self._hook_seconds += self._cpu() - began
            self._count(pending[0].wall_time if pending else 0.0)
        finally:
            self._reading.release()

    def _lose(self, step: Step) -> None:
        self._marked -= step.recorder is not None
        self._forget_boundaries(step)
        self._ends.give(step.ends)
        self._landed(step)
        self._drop(DropReason.ERROR)

    def _finish_plain(self, step: Step) -> None:
        """As :meth:`_finish`, of a step whose operators are not timed: nearly all of them."""
        previous = self._previous_end
        self._sink.write(self.step_reader.record(step, previous), NO_INTERVALS)
        if previous is not None:
            self._ends.give(previous)
        self._previous_end = step.ends
        if self._in_flight.get(step.thread) is step:
            self._landed(step)

    def _finish(self, step: Step) -> None:
        try:
            sampled = step.recorder is not None
            try:
                self._sink.write(*self.step_reader(step, self._previous_end, sampled))
            except Overwritten:
                self._drop(DropReason.OVERWRITTEN)
                sampled = False
                self._sink.write(*self.step_reader(step, self._previous_end, sampled))
            self._sampled_steps += sampled
            if step.recorder is not None:
                # Of the boundaries only the recording itself is known without a clock call around each.
                self._hook_seconds += self.step_reader.calibration.record_cost * len(step.recorder.codes)
        finally:
            self._marked -= step.recorder is not None
            self._forget_boundaries(step)
            if self._previous_end is not None:
                self._ends.give(self._previous_end)
            self._previous_end = step.ends
            self._landed(step)

    def _drop(self, reason: DropReason) -> None:
        self._dropped[reason.code] += 1

    def _count(self, oldest_unread: float) -> None:
        self._sink.count(self._dropped, self.whole, self._sampled_steps, self._hook_seconds, oldest_unread)
