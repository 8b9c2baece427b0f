"""Step timer of one model: opens and closes steps, records boundaries between operators, and never waits for the GPU.

All calls come from the host's model threads. Since v1.1.0 there are two, which take turns with two steps in flight, so each
thread has its own step. The hooks of operators read one attribute, ``timer.recorder``. It is set only inside a forward whose
operators are timed, or while a graph is captured; the recorder knows to which thread it belongs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from lightllm_otel.records import progress
from lightllm_otel.records.vocabulary import DropReason, IdleReason, Mode, Operator, StepOnlyReason
from lightllm_otel.worker.gpu.boundaries import Boundary, BoundaryCodes
from lightllm_otel.worker.gpu.boundary_recorder import BoundaryRecorder
from lightllm_otel.worker.gpu.clock import Clock, Handle
from lightllm_otel.worker.gpu.graph_layout import GraphLayout
from lightllm_otel.worker.gpu.handles import Pool
from lightllm_otel.worker.gpu.pending_steps import UNREAD_STEPS, PendingSteps
from lightllm_otel.worker.gpu.recorder_pool import RecorderPool
from lightllm_otel.worker.gpu.sink import Sink
from lightllm_otel.worker.gpu.step import Step, Work
from lightllm_otel.worker.gpu.step_reader import StepReader
from lightllm_otel.worker.gpu.steps_in_flight import StepsInFlight

PENDING_STEPS = 64
UNREAD_SAMPLED = 3  # sampled steps after which reading no longer waits for a good moment

Begun = tuple[list[Handle], Any, float]
"""A forward that has begun: the events before and after its step, its stream, and its start in seconds of Unix time."""


class Timer:
    """``operators``: whether operators are timed at all. ``boundaries``: the most boundaries of one step."""

    def __init__(
        self,
        clock: Clock,
        sink: Sink,
        operators: bool = True,
        boundaries: int = 512,
        wall_clock: Callable[[], float] = time.time,
        cpu_clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.recorder: BoundaryRecorder | None = None
        self.failed = False
        self.boundary_codes = BoundaryCodes()
        self.gap = self.boundary_codes.code(Boundary(Operator.GAP))
        self.part_gap = self.boundary_codes.part(self.gap)
        self.boundaries = min(boundaries, sink.fits)
        self.launched_steps: dict[int, Step] = {}
        """By thread: the step whose forward has returned, while more of its work may come."""
        self._sampling_boundary = self.boundary_codes.code(Boundary(Operator.SAMPLING))
        # Covers a whole replay between two events; the step reader replaces it by the graph's own timestamps.
        self._graph_boundary = self.boundary_codes.code(Boundary(Operator.GAP, layer=-2))
        self._other = self.boundary_codes.code(Boundary(Operator.OTHER))
        self.step_reader = StepReader(clock, self.boundary_codes, self._graph_boundary, self.gap)
        self._clock = clock
        self._sink = sink
        self._wall = wall_clock
        self._cpu = cpu_clock
        self._record = clock.record
        self._stream = clock.stream
        self._done = clock.done
        self._ends = Pool(clock, 2, PENDING_STEPS + 2, ready=8)
        self._recorders = RecorderPool(
            clock, sink, self.boundary_codes, self.gap, self.boundaries, 3 if operators else 0, cpu_clock
        )
        self._in_flight = StepsInFlight(sink)
        self.pending = PendingSteps(
            clock, sink, self.step_reader, self._in_flight, self._ends, self._recorders, cpu_clock
        )
        self._unread = self.pending.steps
        # Bound once: a method of our own that only calls it would be one more frame in every step.
        self.read_some = self.pending.read_some
        self.step_only = self.pending.step_only
        self._no_requests = True
        # By thread: the step whose forward is in progress, and the seconds of the host's scheduler before the next step.
        self._running: dict[int, Step] = {}
        self._scheduling: dict[int, float] = {}
        # Threads that end their steps with end_step: nothing before it needs to record an end.
        self._ends_late: set[int] = set()
        self._threads: set[int] = set()

    # A step, in the order of calls ---------------------------------------------------------------------------------

    def enter(self, work: Work, number: int, due: bool) -> Step | None:
        """Begin forward ``number``. ``due``: its operators are timed.

        Return None, and count a drop, if too many steps are pending; such a forward is not timed.
        """
        cpu = self._cpu
        began = cpu()
        ends = self.ends()
        if ends is None:
            self.pending.drop(DropReason.PENDING_FULL)
            return None
        step = self._open(self.begin(ends), work, number)
        self._running[step.thread] = step
        if due:
            self._start_recording(step)
        self.pending.hook_seconds += cpu() - began
        return step

    def ends(self) -> list[Handle] | None:
        """Return the two events of the next step, or None if too many steps are pending."""
        return self._ends.take() if len(self._unread) < PENDING_STEPS else None

    def give(self, ends: list[Handle]) -> None:
        """Give back the events of a step that did not come."""
        self._ends.give(ends)

    def begin(self, ends: list[Handle]) -> Begun:
        """Record the start of a forward. It does only what must happen before the launch, because the GPU may be waiting.

        :meth:`launched` follows when the forward has returned, or :meth:`forget` when it has raised.
        """
        stream = self._stream()
        self._record(ends[0], stream)
        return ends, stream, self._wall()

    def launched(self, begun: Begun | None, work: Work, number: int, padded: int) -> None:
        """Add the step of a forward that began with :meth:`begin` and has returned. Its operators are not timed.

        ``begun``: None if there were no events for it. ``padded``: the batch of the graph that it has replayed, or 0.
        """
        pending = self.pending
        if begun is None:
            pending.drop(DropReason.PENDING_FULL)
            return
        began = self._cpu()
        step = self._open(begun, work, number)
        thread = step.thread
        if padded:
            step.mode, step.padded = Mode.GRAPH, padded
        if thread not in self._ends_late:
            self._record(step.ends[1], step.stream)
        pending.append(step)
        self.launched_steps[thread] = step
        pending.hook_seconds += self._cpu() - began
        if len(pending.steps) > 2 * UNREAD_STEPS:
            pending.read()

    def forget(self, begun: Begun) -> None:
        """Drop a forward that began with :meth:`begin` and has raised."""
        self._ends.give(begun[0])
        self.pending.drop(DropReason.ERROR)

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
        in_flight = self._in_flight
        in_flight.pop(thread, None)  # so that the oldest step comes first
        in_flight[thread] = step
        shown = in_flight.shown
        if shown is None or shown.thread == thread:  # otherwise the other thread's step is older
            in_flight.show_oldest()
        return step

    def _start_recording(self, step: Step) -> None:
        if self.recorder is not None:  # another thread's forward is in progress: both would record into one recorder
            self.step_only[StepOnlyReason.OVERLAP.code] += 1
            return
        recorder = self._recorders.take(step)
        if recorder is None:
            self.pending.drop(DropReason.PENDING_FULL)
            return
        step.recorder = self.recorder = recorder

    def stop_recording(self, reason: StepOnlyReason) -> None:
        """Give up the operators of this thread's forward, and count the reason if they were due."""
        step = self._running.get(threading.get_ident())
        if step is not None and step.recorder is not None:
            self._detach(step)
            self.step_only[reason.code] += 1
            self._recorders.give_back(step)
            progress.forget(self._sink.progress)

    def _detach(self, step: Step) -> None:
        """Hide the step's recorder from the hooks of operators; the step keeps it."""
        if self.recorder is step.recorder:
            self.recorder = None

    def leave(self, step: Step | None, padded: int = 0) -> None:
        """End the forward of ``step``: its kernels are launched. Sampling may follow, or nothing.

        ``padded``: the batch of the host's own graph that it has replayed, or 0.
        """
        if step is None:
            self._running.pop(threading.get_ident(), None)
            return
        cpu, pending = self._cpu, self.pending
        began = cpu()
        thread = step.thread
        self._running.pop(thread, None)
        if padded:
            step.mode, step.padded = Mode.GRAPH, padded
        if step.recorder is not None:
            self._detach(step)
            step.recorder.launched()
            if step.recorder.full:
                pending.drop(DropReason.TOO_LARGE)
                self._recorders.give_back(step)
        if thread not in self._ends_late:
            self._record(step.ends[1], step.stream)
        pending.append(step)
        pending.sampled += step.recorder is not None
        self.launched_steps[thread] = step
        pending.hook_seconds += cpu() - began
        # A model without sampling never reaches read_some.
        if pending.sampled > UNREAD_SAMPLED or len(pending.steps) > 2 * UNREAD_STEPS:
            pending.read()

    def abandon(self, step: Step | None) -> None:
        """Drop a forward that raised. The host may repeat it with the same number."""
        self._running.pop(threading.get_ident(), None)
        if step is None:
            return
        self._detach(step)
        self._recorders.give_back(step)
        progress.forget(self._sink.progress)
        self._ends.give(step.ends)
        self._in_flight.remove(step)
        self.pending.drop(DropReason.ERROR)

    def graph(self, padded: int, instrumented: bool) -> Step | None:
        """Note that this thread's forward will replay a graph, the host's own or an instrumented one.

        ``padded``: the number of requests that the graph computes. Return the step if its operators are read from the graph;
        then :meth:`before_replay` and :meth:`after_replay` follow.
        """
        step = self._running.get(threading.get_ident())
        if step is None:
            return None
        step.mode, step.padded = Mode.GRAPH, padded
        if not instrumented:
            self.stop_recording(StepOnlyReason.NOT_INSTRUMENTED)
            return None
        self._detach(step)
        return step if step.recorder is not None else None

    def prefill_graph(self) -> None:
        """Note that this thread's forward will replay prefill graphs, in which Python sees little of its operators."""
        step = self._running.get(threading.get_ident())
        if step is not None:
            step.mode = Mode.GRAPH
            self.stop_recording(StepOnlyReason.PREFILL_GRAPH)

    def before_replay(self, step: Step) -> None:
        """End the gap before the replay: no operator claims what the host launches between entry and replay."""
        if step.recorder is not None:
            step.recorder.record(self.gap)

    def after_replay(self, step: Step, graph_layout: GraphLayout, replay: int) -> None:
        """Note that replay number ``replay`` of an instrumented graph has been launched."""
        if step.recorder is not None:
            step.recorder.record(self._graph_boundary)
            step.graph_layout, step.replay = graph_layout, replay

    def enter_sampling(self) -> Step | None:
        """Begin sampling for the step that this thread launched last; return that step, or None if there is none."""
        step = self.launched_steps.get(threading.get_ident())
        if step is None or step.sampled:
            return None
        step.sampled = True
        if step.recorder is not None:
            step.recorder.record(self.gap)
        return step

    def sampling_is_plain(self, step: Step) -> bool:
        """Tell whether nothing needs recording around this step's sampling, because its end is recorded later."""
        return step.recorder is None and step.thread in self._ends_late

    def leave_sampling(self, step: Step, ends: bool = True) -> None:
        """End sampling. ``ends``: nothing else of the step follows, so the host is about to wait for it."""
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
        """Close the step that this thread launched last, and return it; None if there is none.

        Work since sampling (the host copies tokens, drafts run) is part of the step, but no operator claims it.
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
        """Close a step whose end the host did not announce: the last recorded event is its end."""
        step = self.launched_steps.pop(thread)
        if thread in self._ends_late:  # this thread has always announced it, so nothing was recorded
            self._ends_late.discard(thread)
            step.lost = True
        step.closed = True

    # Between steps ----------------------------------------------------------------------------------------------------

    def adopt_thread(self) -> None:
        """Prepare the calling thread, which runs forwards or is about to. Only the first call of a thread does anything."""
        thread = threading.get_ident()
        if thread not in self._threads:
            self._threads.add(thread)
            self._clock.adopt_thread()

    def loop_began(self) -> None:
        """Note that this thread's loop begins again: the host has waited for the step that the thread launched."""
        thread = threading.get_ident()
        step = self._in_flight.get(thread)
        if step is None:
            self.adopt_thread()
        elif step.lost or step.sampled or self._done(step.ends[1]):  # the host waits for what it has sampled
            self._in_flight.remove(step)

    def scheduled(self, seconds: float) -> None:
        """Note how long the host's scheduler ran on this thread before the next step."""
        self._scheduling[threading.get_ident()] = seconds

    def tick(self, idle: bool = True) -> None:
        """Note that the host's loop ran without a step. ``idle``: because there was nothing to do."""
        self._no_requests = self._no_requests or idle
        thread = threading.get_ident()
        if thread in self.launched_steps:
            self._close_without_end(thread)
        if self._unread:
            self.pending.read()

    def fail(self) -> None:
        """End all timing after an error of the plugin. The host goes on without it."""
        self.failed = True
        self.recorder = None
        self.pending.give_up()
        self._forget_threads()
        self.pending.publish()

    def pause(self) -> None:
        """End timing because live control says off: read finished steps and drop the rest, so that nothing looks stuck."""
        for step in self.pending.steps:
            step.closed = True
            step.lost = step.lost or (step.thread in self._ends_late and step.thread in self.launched_steps)
        self.launched_steps.clear()
        self.pending.read()
        self.pending.drop_rest()
        self._no_requests = True
        self._forget_threads()
        self.pending.publish()

    def _forget_threads(self) -> None:
        self._running.clear()
        self.launched_steps.clear()
        self._in_flight.remove_all()
