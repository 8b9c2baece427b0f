"""Spans of requests and of sampled steps, put together from notes and rings; plain data, without OpenTelemetry's SDK.

A request's span has children without a gap between them, so their durations add up to its own. A step is a trace of its own, with
links to the requests that ran in it: one step serves many requests.
"""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Optional

import numpy as np

from lightllm_otel.exporter.otlp_sender import OtlpSender
from lightllm_otel.otel_environment import OtelEnvironment
from lightllm_otel.records import layout
from lightllm_otel.records.batch import RecordBatch
from lightllm_otel.records.vocabulary import IdleReason, Mode, Operator, Phase, SpanDrop
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
STEP, OPERATOR = "lightllm.step ", "lightllm.operator "  # how names of spans begin
_NANO = 1_000_000_000


@dataclasses.dataclass(frozen=True)
class Context:
    """What identifies a span. ``state``: W3C ``tracestate``."""

    trace_id: int
    span_id: int
    state: str = ""


@dataclasses.dataclass(frozen=True)
class SpanData:
    """One span; nanoseconds of Unix time. ``error``: what kind of failure ended it, or empty."""

    name: str
    context: Context
    parent: Optional[Context]
    start: int
    end: int
    attributes: Mapping[str, Any]
    links: tuple[Context, ...] = ()
    server: bool = False
    error: str = ""

    @property
    def of_step(self) -> bool:
        """A step, or an operator in one."""
        return self.name.startswith((STEP, OPERATOR))


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A prefill step in which tokens of a request's prompt were computed. ``entered``: Unix nanoseconds."""

    number: int
    entered: int
    cached: int
    tokens: int


@dataclasses.dataclass
class Request:
    context: Context
    chunks: dict[int, Chunk] = dataclasses.field(default_factory=dict)


NewId = Callable[[int], int]


def random_id(size: int) -> int:
    """Of so many bytes, never 0."""
    return int.from_bytes(os.urandom(size), "big") or 1


def request_spans(
    note: Mapping[str, Any], chunks: Sequence[Chunk], gpu_seconds: Mapping[int, float], new_id: NewId = random_id
) -> list[SpanData]:
    """A request that has ended: its span and its parts. ``gpu_seconds``: of prefill steps, by number."""
    state = str(note["ts"])
    own = Context(int(note["t"], 16), int(note["s"], 16), state)
    parent = Context(own.trace_id, int(note["p"], 16), state) if note["p"] else None
    began, _, first, last, ended = note["at"]
    attributes = {**note["a"], **_usage(note, chunks), "lightllm.request.id": str(note["id"])}
    if first:
        attributes["gen_ai.server.time_to_first_token"] = (first - began) / _NANO
    if note["out"] > 1:
        attributes["gen_ai.server.time_per_output_token"] = (last - first) / _NANO / (note["out"] - 1)
    if note["err"]:
        attributes["error.type"] = note["err"]
    name = f"{attributes['gen_ai.operation.name']} {attributes['gen_ai.request.model']}"
    whole = SpanData(name, own, parent, began, ended, attributes, server=True, error=note["err"])
    parts = [
        SpanData(f"lightllm.{part}", Context(own.trace_id, new_id(8), state), own, start, end, about)
        for part, start, end, about in request_parts(note["at"], chunks, gpu_seconds)
    ]
    return [whole, *parts]


def _usage(note: Mapping[str, Any], chunks: Sequence[Chunk]) -> dict[str, Any]:
    usage: dict[str, Any] = {"gen_ai.usage.output_tokens": note["out"]}
    if note["in"]:
        usage["gen_ai.usage.input_tokens"] = note["in"]
    if chunks:
        usage["gen_ai.usage.cache_read.input_tokens"] = chunks[0].cached
    if note["fin"]:
        usage["gen_ai.response.finish_reasons"] = tuple(note["fin"])
    return usage


def request_parts(
    times: Sequence[int], chunks: Sequence[Chunk], gpu_seconds: Mapping[int, float]
) -> list[tuple[str, int, int, dict[str, Any]]]:
    """``(name, start, end, attributes)``, each beginning where the one before ends, from the request's start to its end.

    Without a first token the last part that was reached goes on to the end.
    """
    began, tokenised, first, last, ended = times
    boundary_codes: list[tuple[str, int, dict[str, Any]]] = [("tokenise", began, {})]
    if tokenised:
        boundary_codes.append(("queue", tokenised, {}))
    for chunk in chunks:
        about: dict[str, Any] = {"lightllm.step.number": chunk.number, "lightllm.prefill.tokens": chunk.tokens}
        if chunk.number in gpu_seconds:
            about["lightllm.gpu.duration"] = gpu_seconds[chunk.number]
        boundary_codes.append(("prefill", chunk.entered, about))
    if first:
        if last > first:
            boundary_codes.append(("decode", first, {}))
        boundary_codes.append(("tail", last, {}))
    limits = [began]
    for _, at, _ in boundary_codes[1:]:  # clocks of several processes are one, but nothing may go backwards
        limits.append(min(max(at, limits[-1]), ended))
    limits.append(ended)
    return [(name, limits[at], limits[at + 1], about) for at, (name, _, about) in enumerate(boundary_codes)]


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
            request.chunks[number] = Chunk(number, int(note["w"] * _NANO), cached, tokens)

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


def step_span(step: Any, intervals: np.ndarray, start: Start, own: Context, links: tuple[Context, ...]) -> SpanData:
    """A step with the seconds of each of its operators."""
    phase = Phase.of(int(step["phase"])).value
    sums = np.bincount(intervals["operator"], intervals["seconds"], len(Operator))
    attributes: dict[str, Any] = {
        "lightllm.phase": phase,
        "lightllm.mode": Mode.of(int(step["mode"])).value,
        "lightllm.step.number": int(step["number"]),
        "lightllm.step.requests": int(step["requests"]),
        "lightllm.step.tokens": int(step["tokens"]),
        "lightllm.step.context": int(step["context"]),
        "lightllm.step.padded": int(step["padded"]),
        "lightllm.gpu.idle_before": float(step["idle_seconds"]),
        "lightllm.gpu.idle_reason": IdleReason.of(int(step["idle_reason"])).value,
        "lightllm.clock.error": start.error,
        **{
            f"lightllm.operator.{Operator.of(code).value}.duration": float(seconds)
            for code, seconds in enumerate(sums)
            if seconds
        },
    }
    began = int(start.seconds * _NANO)
    return SpanData(f"{STEP}{phase}", own, None, began, began + int(float(step["seconds"]) * _NANO), attributes, links)


def operator_spans(step: Any, intervals: np.ndarray, start: Start, own: Context, new_id: NewId) -> list[SpanData]:
    """The calls of a step one after the other, as the ring has them. What is between them is one interval there, the gap, so a
    call may lie by up to the step's gap earlier or later than it was; how long it took is exact.
    """
    began = int(start.seconds * _NANO)
    limit = began + int(float(step["seconds"]) * _NANO)
    ends = np.cumsum(intervals["seconds"].astype(np.float64))
    spans = []
    for interval, end in zip(intervals, ends.tolist()):
        operator = Operator.of(int(interval["operator"]))
        if operator is Operator.GAP:
            continue
        seconds = float(interval["seconds"])
        attributes: dict[str, Any] = {"lightllm.operator": operator.value}
        if interval["layer"] >= 0:
            attributes["lightllm.layer"] = int(interval["layer"])
        if interval["payload_bytes"]:
            attributes["lightllm.collective.payload"] = int(interval["payload_bytes"])
        if interval["flags"] & layout.STARVED:
            attributes["lightllm.starved"] = True
        first, last = (min(began + int(at * _NANO), limit) for at in (end - seconds, end))
        context = Context(own.trace_id, new_id(8))
        spans.append(SpanData(f"{OPERATOR}{operator.value}", context, own, first, last, attributes))
    return spans


def _bound(known: collections.OrderedDict[Any, Any], most: int) -> None:
    while len(known) > most:
        known.popitem(last=False)
