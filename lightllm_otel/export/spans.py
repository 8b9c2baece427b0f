"""Spans over OTLP: from our own data into the SDK's, batch by batch, to whatever receiver the standard variables name."""

from __future__ import annotations

import collections
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Optional

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from lightllm_otel.aggregate.group import Group
from lightllm_otel.export.otlp import SCOPE, resource
from lightllm_otel.export.outbound import Interval, Outbound, Sender
from lightllm_otel.export.traces import Context, SpanData, TraceBook
from lightllm_otel.standard import Standard
from lightllm_otel.vocabulary import Signal, SpanDrop

LAST_SECONDS = 2.0


def sdk_span(span: SpanData, who: Resource) -> ReadableSpan:
    """The SDK's own form of it."""
    return ReadableSpan(
        span.name,
        context=_context(span.context, remote=False),
        parent=_context(span.parent, remote=span.server),
        resource=who,
        attributes=span.attributes,
        links=[
            Link(_known(link), BoundedAttributes(attributes={})) for link in span.links
        ],  # 1.26 asks how many it dropped
        kind=SpanKind.SERVER if span.server else SpanKind.INTERNAL,
        status=Status(StatusCode.ERROR, span.error) if span.error else Status(),
        start_time=span.start,
        end_time=span.end,
        instrumentation_scope=SCOPE,
    )


def _context(context: Optional[Context], remote: bool) -> Optional[SpanContext]:
    return None if context is None else _known(context, remote)


def _known(context: Context, remote: bool = False) -> SpanContext:
    state = TraceState.from_header([context.state]) if context.state else TraceState()
    return SpanContext(context.trace_id, context.span_id, remote, TraceFlags(TraceFlags.SAMPLED), state)


class SpanPush:
    """Hands whole spans of ``book`` to ``receivers`` (the SDK's exporters), by the SDK's rules for batches."""

    def __init__(
        self,
        receivers: Iterable[Any],
        standard: Standard,
        group: Group,
        book: TraceBook,
        outbound: Outbound,
        name: str,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._book, self._group, self._name, self._now = book, group, name, now
        self._queues = [_Queue(receiver, standard, outbound, now()) for receiver in receivers]

    def poll(self) -> None:
        made = self._book.settle(self._now())
        for each in self._queues:
            each.add(made)
            each.send(self._now(), self._who)

    def _who(self) -> Resource:
        return resource(self._group.facts(), self._name)

    def close(self) -> None:
        made = [*self._book.settle(self._now()), *self._book.close()]
        for each in self._queues:
            each.add(made)
            each.close(self._who)


class _Queue:
    """What waits for one receiver."""

    def __init__(self, receiver: Any, standard: Standard, outbound: Outbound, now: float) -> None:
        self._receiver, self._standard, self._outbound = receiver, standard, outbound
        self._sender = Sender(Signal.TRACES, functools.partial(_export, receiver), outbound)
        self._interval = Interval(standard.span_delay, now)
        self._waiting: collections.deque[SpanData] = collections.deque()

    def add(self, spans: Sequence[SpanData]) -> None:
        self._waiting.extend(spans)
        excess = max(len(self._waiting) - self._standard.span_queue, 0)
        if excess:
            self._waiting = collections.deque(without_latest(self._waiting, excess))
            self._outbound.dropped[SpanDrop.QUEUE] += excess

    def send(self, now: float, who: Callable[[], Resource]) -> None:
        """A batch, if it is time, or enough wait; while one is on its way the others wait."""
        if self._waiting and (self._interval.due(now) or len(self._waiting) >= self._standard.span_batch):
            self._send(who)

    def _send(self, who: Callable[[], Resource]) -> None:
        # As many as there are, if the receiver is quick: a batch is what it takes at a time.
        if not self._sender.drain(0):
            return
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._standard.span_batch))]
        self._sender.offer((batch, who()), functools.partial(self._done, len(batch)))

    def _done(self, count: int, taken: bool) -> None:
        if not taken:
            self._outbound.dropped[SpanDrop.RECEIVER] += count

    def close(self, who: Callable[[], Resource]) -> None:
        deadline = time.monotonic() + LAST_SECONDS
        while self._waiting and self._sender.drain(max(deadline - time.monotonic(), 0.0)):
            self._send(who)
        if self._sender.drain(max(deadline - time.monotonic(), 0.0)):
            self._receiver.shutdown()


def without_latest(spans: Sequence[SpanData], excess: int) -> list[SpanData]:
    """All but so many of the latest, and those of steps before those of requests, which somebody asked for."""
    order = sorted(range(len(spans)), key=lambda at: (spans[at].of_step, at), reverse=True)
    dropped = set(order[:excess])
    return [span for at, span in enumerate(spans) if at not in dropped]


def _export(receiver: Any, batch: tuple[list[SpanData], Resource]) -> bool:
    spans, who = batch
    taken: bool = receiver.export([sdk_span(span, who) for span in spans]) is SpanExportResult.SUCCESS
    return taken
