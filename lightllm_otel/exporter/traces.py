"""Requests and sampled steps, put together from notes and rings until their spans can be made."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lightllm_otel.exporter.otlp_sender import OtlpSender
from lightllm_otel.exporter.request_spans import Chunk, request_spans
from lightllm_otel.exporter.spans import NANO, Context, NewId, SpanData, random_id
from lightllm_otel.exporter.step_spans import operator_spans, step_span
from lightllm_otel.otel_environment import OtelEnvironment
from lightllm_otel.records.batch import RecordBatch
from lightllm_otel.records.vocabulary import Phase, SpanDrop
from lightllm_otel.reduce.group import Group
from lightllm_otel.reduce.histogram import Exemplar
from lightllm_otel.reduce.wallclock import Start, WallClock

MOST_REQUESTS = 8192  # that we know the trace of
MOST_STEPS = 4096
MOST_CHUNKS = 256  # of one prompt
STEP_PATIENCE = 5.0  # seconds; until who ran in a step should be known
END_PATIENCE = 1.0  # until the steps of a request that has ended are in the ring
# A span costs tens of microseconds here. Steps and operators beyond this many in a second are left out; requests never are.
SPANS_PER_SECOND = 1000.0


@dataclasses.dataclass
class Request:
    context: Context
    chunks: dict[int, Chunk] = dataclasses.field(default_factory=dict)


class TraceBook:
    """Collects what rings and notes say, and hands out whole spans. ``now`` is given as monotonic seconds."""

    def __init__(
        self, otel_environment: OtelEnvironment, group: Group, otlp_sender: OtlpSender, new_id: NewId = random_id
    ) -> None:
        self._otel_environment, self._group, self._otlp_sender, self._new_id = (
            otel_environment,
            group,
            otlp_sender,
            new_id,
        )
        self._clock = WallClock()
        self._requests: collections.OrderedDict[Any, Request] = collections.OrderedDict()
        self._ran: collections.OrderedDict[int, list[Any]] = collections.OrderedDict()
        self._prefills: collections.OrderedDict[int, float] = collections.OrderedDict()
        self._steps: dict[int, tuple[float, Any, np.ndarray, Start]] = {}
        self._ended: collections.deque[tuple[float, Mapping[str, Any]]] = collections.deque()
        self._allowed, self._filled = SPANS_PER_SECOND, 0.0

    def restarted(self) -> None:
        """The rank's process is a new one, and counts from 0 again."""
        self._clock = WallClock()
        self._ran.clear()
        self._prefills.clear()
        self._steps.clear()

    def steps(self, batch: RecordBatch, now: float) -> None:
        """Add steps of the first rank."""
        self._clock.latency = float(self._group.facts().get("start_latency") or 0.0)
        for at, step in enumerate(batch.steps):
            start = self._clock.start(step)
            number = int(step["number"])
            if int(step["phase"]) != Phase.DECODE.code:
                self._prefills[number] = float(step["seconds"])
                _bound(self._prefills, MOST_STEPS)
            if batch.is_sampled[at]:
                self._steps[number] = (now, step, batch.intervals_of(at), start)

    def notes(self, notes: Iterable[Mapping[str, Any]], now: float) -> None:
        """New notes of all processes: what a request is comes before who ran in a step, in whatever order they were read."""
        for note in sorted(notes, key=lambda note: "bse".index(note["k"])):
            if note["k"] == "b":
                self._requests[note["id"]] = Request(Context(int(note["t"], 16), int(note["s"], 16)))
                _bound(self._requests, MOST_REQUESTS)
            elif note["k"] == "s":
                self._step_note(note)
            else:
                self._ended.append((now + END_PATIENCE, note))

    def _step_note(self, note: Mapping[str, Any]) -> None:
        number = int(note["n"])
        self._ran[number] = list(dict.fromkeys(entry[0] for entry in note["r"]))
        _bound(self._ran, MOST_STEPS)
        for entry in note["r"]:
            request = self._requests.get(entry[0])
            if len(entry) < 3 or entry[2] <= 0 or request is None or len(request.chunks) >= MOST_CHUNKS:
                continue
            before = request.chunks.get(number)  # another answer to the same prompt
            cached = entry[1] if before is None else min(entry[1], before.cached)
            tokens = entry[2] + (before.tokens if before is not None else 0)
            request.chunks[number] = Chunk(number, int(note["w"] * NANO), cached, tokens)

    def settle(self, now: float) -> list[SpanData]:
        """Spans that are whole by now."""
        self._allowed = min(SPANS_PER_SECOND, self._allowed + (now - self._filled) * SPANS_PER_SECOND)
        self._filled = now
        made: list[SpanData] = []
        while self._ended and self._ended[0][0] <= now:
            made += self._request(self._ended.popleft()[1])
        for number, (seen, step, intervals, start) in list(self._steps.items()):
            ran = self._ran.get(number)
            if ran is not None:
                made += self._step(step, intervals, start, ran)
            if ran is not None or now - seen > STEP_PATIENCE:
                del self._steps[number]
        return made

    def close(self) -> list[SpanData]:
        """Requests that have ended, without waiting for what may still come of their steps."""
        made = []
        while self._ended:
            made += self._request(self._ended.popleft()[1])
        return made

    def _request(self, note: Mapping[str, Any]) -> list[SpanData]:
        known = self._requests.get(note["id"])
        chunks = (
            list(known.chunks.values()) if known is not None and known.context.span_id == int(note["s"], 16) else []
        )
        first = note["at"][2] or note["at"][4]
        # A request that was paused computes its prompt again, in the middle of its decoding.
        chunks = sorted((chunk for chunk in chunks if chunk.entered < first), key=lambda chunk: chunk.entered)
        return request_spans(note, chunks, self._prefills, self._new_id)

    def _step(self, step: Any, intervals: np.ndarray, start: Start, ran: Sequence[Any]) -> list[SpanData]:
        traced = [self._requests[number].context for number in ran if number in self._requests]
        own = Context(self._new_id(16), self._new_id(8))
        if not traced and (own.trace_id & (2**64 - 1)) >= round(self._otel_environment.sampler.root * 2**64):
            return []
        operators = operator_spans(step, intervals, start, own, self._new_id) if traced else []
        if not self._may(1 + len(operators)):
            self._otlp_sender.drop(SpanDrop.RATE, len(operators))
            operators = []
            if not self._may(1):
                self._otlp_sender.drop(SpanDrop.RATE, 1)
                return []
        whole = step_span(step, intervals, start, own, tuple(traced))
        self._show(step, intervals, start, own)
        return [whole, *operators]

    def _may(self, spans: int) -> bool:
        if self._allowed < spans:
            return False
        self._allowed -= spans
        return True

    def _show(self, step: Any, intervals: np.ndarray, start: Start, own: Context) -> None:
        """Exemplars: the step among its like, and the longest call of each of its operators."""
        phase, mode = int(step["phase"]), int(step["mode"])

        def exemplar(value: float) -> Exemplar:
            return Exemplar(value, start.seconds, own.trace_id, own.span_id)

        if (phase, mode) in self._group.steps.histograms:
            self._group.steps.histograms[phase, mode].show(exemplar(float(step["seconds"])))
        for operator in np.unique(intervals["operator"]).tolist():
            histogram = self._group.operators.histograms.get((operator, phase, mode))
            if histogram is not None:
                longest = intervals["seconds"][intervals["operator"] == operator].max()
                histogram.show(exemplar(float(longest)))


def _bound(known: collections.OrderedDict[Any, Any], most: int) -> None:
    while len(known) > most:
        known.popitem(last=False)
