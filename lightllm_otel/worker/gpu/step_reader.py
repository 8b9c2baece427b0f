"""Step reader: turns a finished step into ring records in one vectorised pass."""

from __future__ import annotations

import dataclasses

import numpy as np

from lightllm_otel.records import layout
from lightllm_otel.records.vocabulary import IdleReason, Operator
from lightllm_otel.worker.gpu.boundaries import Boundary, BoundaryCodes, Shape, unpack
from lightllm_otel.worker.gpu.calibration import Calibration
from lightllm_otel.worker.gpu.clock import Clock, Handle, HostClock
from lightllm_otel.worker.gpu.step import Step
from lightllm_otel.worker.gpu.timestamp_kernels import Timestamps

NO_INTERVALS = np.zeros(0, layout.INTERVAL)
_MOST_PAYLOAD = 2**32 - 1
_LEAST_LAUNCHING = 1e-9  # seconds: above 0, because 0 means that the GPU did not wait


@dataclasses.dataclass(frozen=True)
class Intervals:
    """Consecutive intervals of one step; all arrays have shape (intervals,), all times are in seconds.

    ``codes``: the boundaries that end them. ``cost``: the part of ``seconds`` that a boundary costs. ``launching``: how long
    the host took to launch what the GPU waited for; 0 where the GPU was not ``starved``. ``payloads``: (position, packed
    payload) of collectives. ``closure``: the time that boundaries cover; inside a graph, as its timestamps measure it.
    """

    codes: tuple[int, ...]
    seconds: np.ndarray
    cost: np.ndarray
    launching: np.ndarray
    payloads: list[tuple[int, int]]
    closure: float

    @property
    def starved(self) -> np.ndarray:
        """Return a mask of the intervals at whose end the GPU waited for the host; bool, shape (intervals,)."""
        return np.asarray(self.launching > 0)


class StepReader:
    """Reader of finished steps. ``graph``: the code of the interval that covers a whole graph replay.

    ``calibration``: costs of the clock's boundaries. ``timestamp_calibration``: costs of the timestamps inside graphs.
    """

    def __init__(self, clock: Clock, boundary_codes: BoundaryCodes, graph: int, gap: int) -> None:
        self.calibration = Calibration()
        self.timestamps: Timestamps | None = None
        self.timestamp_calibration = Calibration()
        self._clock = clock
        self._boundary_codes = boundary_codes
        self._graph = graph
        self._gap = gap
        self._other = boundary_codes.code(Boundary(Operator.OTHER))
        self._tells_waiting = clock.source != HostClock.source

    def __call__(self, step: Step, previous_end: list[Handle] | None, sampled: bool) -> tuple[bytes, np.ndarray]:
        """Return ``(step, intervals)``: the bytes of a ``STEP``, and ``INTERVAL`` records of shape (n,).

        All of its events must be done. ``previous_end``: the events of the step before, or None. ``sampled``: read operators
        as well. Raises Overwritten if the timestamps of its graph are gone; then call again with ``sampled`` false.
        """
        if not sampled or step.recorder is None or len(step.recorder.codes) < 2:
            return self.record(step, previous_end), NO_INTERVALS
        parts = self._parts(step)
        shape = self._boundary_codes.shape(parts.codes)
        seconds = without_cost(parts.seconds, parts.cost, shape)
        rows = len(shape.template)
        intervals = shape.template.copy()
        intervals["seconds"] = np.bincount(shape.row, seconds, rows)
        if parts.starved.any():
            launching = np.bincount(shape.row, parts.launching, rows)
            starved = np.flatnonzero(launching)
            intervals["flags"][starved] = layout.STARVED | layout.launching_bits(launching[starved])
        for at, packed in parts.payloads:
            payload, how = unpack(packed)
            row = shape.row[at]
            intervals["payload_bytes"][row], intervals["implementation"][row] = min(payload, _MOST_PAYLOAD), how
        overhead = float(parts.seconds.sum() - seconds.sum())
        return self.record(step, previous_end, rows, parts.closure, overhead), intervals

    def record(
        self,
        step: Step,
        previous_end: list[Handle] | None,
        intervals: int = 0,
        closure: float = 0.0,
        overhead: float = 0.0,
    ) -> bytes:
        """Return the bytes of a ``STEP``; its events must be done. ``closure``, ``overhead``: in seconds."""
        first, last = step.ends
        idle, reason = 0.0, 0
        if previous_end is not None:
            # With two infer threads a step may start before the other one has ended; then the GPU was not idle.
            idle, reason = max(self._clock.seconds(previous_end[1], first), 0.0), step.idle_reason.code
            if step.scheduling >= idle / 2 > 0 and step.idle_reason is IdleReason.HOST:
                reason = IdleReason.SCHEDULER.code
        work = step.work
        return layout.PACKED_STEP.pack(
            layout.STEP_MAGIC, intervals, work.phase.code, step.mode.code, step.number & 0xFFFFFFFF,
            layout.SAMPLED if intervals else 0, reason, 0, step.wall_time, self._clock.seconds(first, last), closure,
            overhead, idle, work.batch, step.requests, step.tokens, work.context, step.padded,
        )  # fmt: skip

    def _parts(self, step: Step) -> Intervals:
        recorder = step.recorder
        assert recorder is not None
        count = len(recorder.codes)
        seconds = self._clock.intervals(recorder.places[:count])
        starved = np.array(recorder.before[1:count]) == self._clock.finished
        launching = np.where(starved, np.maximum(np.diff(recorder.at[:count]), _LEAST_LAUNCHING), 0.0)
        # Where the GPU waited for the host, the boundary was over before the next kernel came: it costs nothing.
        cost = np.where(starved, 0.0, self.calibration.boundary_cost)
        payloads = [(at - 1, payload) for at, payload in recorder.payloads]
        codes = tuple(recorder.codes[1:])  # the first boundary only begins
        if self._tells_waiting:  # a gap in which the GPU did not wait is work that no operator claims
            codes = tuple(
                self._other if code == self._gap and not waits else code for code, waits in zip(codes, starved)
            )
        parts = Intervals(codes, seconds, cost, launching, payloads, float(seconds.sum()))
        return parts if step.graph_layout is None else self._with_graph(step, parts)

    def _with_graph(self, step: Step, around: Intervals) -> Intervals:
        """Replace the interval of the replay by the intervals between the graph's own timestamps.

        The part of the replay that no timestamp covers (its launch, and the copy of the timestamps) becomes gap.
        """
        graph_layout = step.graph_layout
        assert graph_layout is not None
        assert self.timestamps is not None
        at = around.codes.index(self._graph)
        inside = self.timestamps.intervals(step.replay, len(graph_layout.codes))
        replay, timestamped = float(around.seconds[at]), float(inside.sum())
        rest = max(replay - timestamped, 0.0)
        many = len(inside)

        def spliced(outer: np.ndarray, inner: np.ndarray, last: float) -> np.ndarray:
            joined: np.ndarray = np.concatenate((outer[:at], inner, [last], outer[at + 1 :]))
            return joined

        return Intervals(
            (*around.codes[:at], *graph_layout.codes[1:], self._gap, *around.codes[at + 1 :]),
            spliced(around.seconds, inside, rest),
            spliced(
                around.cost,
                self.timestamp_calibration.costs(many, graph_layout.chained_from, graph_layout.programmatic),
                0.0,
            ),
            spliced(around.launching, np.zeros(many), 0.0),
            [*((at + place - 1, payload) for place, payload in graph_layout.payloads), *around.payloads],
            around.closure - replay + timestamped,
        )


def without_cost(seconds: np.ndarray, cost: np.ndarray, shape: Shape) -> np.ndarray:
    """Return ``seconds`` minus ``cost``, none below 0, and unbiased for every operator; shape (intervals,).

    With a coarse timer, a single interval can be shorter than the cost of its boundary. Cutting it off at 0 alone would make
    its operator too long. So the operator's other calls in the step are scaled down by the difference.
    """
    net: np.ndarray = np.maximum(seconds - cost, 0.0)
    if (seconds >= cost).all():
        return net
    operator = shape.template["operator"][shape.row]
    wanted = np.maximum(np.bincount(operator, seconds - cost, len(Operator)), 0.0)
    cut = np.bincount(operator, net, len(Operator))
    scale = np.divide(wanted, cut, out=np.zeros(len(Operator)), where=cut > 0)
    scaled: np.ndarray = net * scale[operator]
    return scaled
