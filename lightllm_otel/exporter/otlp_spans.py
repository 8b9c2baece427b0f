"""Spans over OTLP: converts our spans to the SDK's and sends them through its batch processors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Optional

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from lightllm_otel.exporter.otlp_data import SCOPE, resource
from lightllm_otel.exporter.otlp_sender import OtlpSender, Outcomes, last_words
from lightllm_otel.exporter.spans import Context, SpanData
from lightllm_otel.exporter.traces import TraceBook
from lightllm_otel.otel_environment import OtelEnvironment
from lightllm_otel.records.vocabulary import Signal, SpanDrop
from lightllm_otel.reduce.group import Group

LAST_SECONDS = 2.0


def sdk_span(span: SpanData, who: Resource) -> ReadableSpan:
    """Return the span as the SDK represents it."""
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


class OtlpSpans:
    """Sender of the complete spans of ``book``. Each of ``receivers`` is a pair of SDK exporters, for requests and for steps.

    So neither many steps nor a slow batch of steps can displace or delay the spans of requests.
    """

    def __init__(
        self,
        receivers: Iterable[tuple[Any, Any]],
        otel_environment: OtelEnvironment,
        group: Group,
        book: TraceBook,
        otlp_sender: OtlpSender,
        name: str,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        last_words.listen()
        self._book, self._group, self._name, self._now = book, group, name, now
        pairs = list(receivers)
        self.requests = [SpanQueue(one, otel_environment, otlp_sender, "traces of requests") for one, _ in pairs]
        self.steps = [SpanQueue(other, otel_environment, otlp_sender, "traces of steps") for _, other in pairs]

    def poll(self) -> None:
        self._put(self._book.settle(self._now()))

    def _put(self, made: list[SpanData]) -> None:
        if not made:
            return
        who = resource(self._group.facts(), self._name)
        for span in made:
            free = [queue for queue in (self.steps if span.of_step else self.requests) if queue.has_room()]
            if free:
                ready = sdk_span(span, who)
                for queue in free:
                    queue.put(ready)

    def close(self) -> None:
        """Send what is left, but wait no longer than ``LAST_SECONDS``."""
        self._put([*self._book.settle(self._now()), *self._book.close()])
        deadline = time.monotonic() + LAST_SECONDS
        for thread in [queue.close() for queue in (*self.requests, *self.steps)]:
            thread.join(max(deadline - time.monotonic(), 0.0))


class SpanQueue:
    """The SDK's batch processor in front of one exporter, with a bound that counts what it refuses.

    The SDK's own queue drops its oldest span when it is full, and counts nothing. So it is never given more than it holds:
    what went in less what came out is at least what it holds. The spans that come last are refused.
    """

    def __init__(self, receiver: Any, otel_environment: OtelEnvironment, otlp_sender: OtlpSender, what: str) -> None:
        self._otlp_sender, self._size = otlp_sender, otel_environment.span_queue
        self.entered = 0  # written by the thread that polls
        self.exporter = CountingExporter(receiver, otlp_sender, what)
        self._processor = BatchSpanProcessor(
            self.exporter,
            max_queue_size=self._size,
            schedule_delay_millis=otel_environment.span_delay * 1e3,
            max_export_batch_size=min(otel_environment.span_batch, self._size),
            export_timeout_millis=otel_environment.span_timeout * 1e3,
        )

    @property
    def waiting(self) -> int:
        """Spans in the queue: never fewer than the SDK's queue holds when the thread that polls asks."""
        return self.entered - self.exporter.received

    def has_room(self) -> bool:
        """Return True if there is room for one more span. If not, count that span as dropped."""
        if self.waiting < self._size:
            return True
        self._otlp_sender.drop(SpanDrop.QUEUE, 1)
        return False

    def put(self, span: ReadableSpan) -> None:
        self._processor.on_end(span)
        self.entered += 1

    def close(self) -> threading.Thread:
        """Send what waits, on a thread: the SDK's shutdown waits for its receiver, some versions of it without a limit."""
        thread = threading.Thread(target=self._processor.shutdown, daemon=True, name="otlp traces end")
        thread.start()
        return thread


class CountingExporter(SpanExporter):
    """An SDK exporter that counts what it was given and what its receiver took; one thread, the processor's, calls it."""

    def __init__(self, receiver: Any, otlp_sender: OtlpSender, what: str) -> None:
        self._receiver, self._otlp_sender = receiver, otlp_sender
        self._outcomes = Outcomes(Signal.TRACES, what, otlp_sender)
        self.received = 0
        self.exported = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.received += len(spans)
        last_words.forget()
        result = SpanExportResult.FAILURE
        try:
            result = self._receiver.export(spans)
        except Exception as error:  # noqa: BLE001 - every error of a receiver is counted and logged
            said = repr(error)
        else:
            said = last_words.said()
        if result is SpanExportResult.SUCCESS:
            self.exported += len(spans)
        else:
            self._otlp_sender.drop(SpanDrop.RECEIVER, len(spans))
        self._outcomes.add(result is SpanExportResult.SUCCESS, said)
        return result

    def shutdown(self) -> None:
        self._receiver.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        flushed: bool = self._receiver.force_flush(timeout_millis)
        return flushed
