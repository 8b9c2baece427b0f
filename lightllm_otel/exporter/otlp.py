"""What goes to receivers by itself. OpenTelemetry's SDK is imported only if something does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional, Protocol

from lightllm_otel.exporter.otlp_sender import loaded
from lightllm_otel.exporter.prometheus import GroupCollector
from lightllm_otel.exporter.traces import TraceBook
from lightllm_otel.guard import log
from lightllm_otel.otel_environment import Standard
from lightllm_otel.parts import Parts
from lightllm_otel.records.vocabulary import ExporterStage, Signal
from lightllm_otel.reduce.group import Group


class Push(Protocol):
    """Something that hands over by itself what is known."""

    def poll(self) -> None: ...

    def close(self) -> None: ...


def pushes(
    standard: Standard, group: Group, collector: GroupCollector, name: str, parts: Parts, now: Callable[[], float]
) -> tuple[list[Push], Optional[TraceBook]]:
    """Return what the standard variables ask for, and the book of spans if spans are sent. ``name``: of the group's folder."""
    for problem in standard.problems:
        log.error(problem)
    made: list[Push] = []
    book: Optional[TraceBook] = None
    try:
        if receivers := loaded(Signal.METRICS, standard.metrics):
            from lightllm_otel.exporter.otlp_metrics import MetricsPush

            made.append(MetricsPush([each for (each,) in receivers], standard, group, collector, name, now))
    except Exception as error:  # noqa: BLE001 - an SDK of another time must not end the rest
        _off(parts, Signal.METRICS, error)
    try:
        if receivers := loaded(Signal.TRACES, standard.traces, copies=2):
            from lightllm_otel.exporter.otlp_spans import SpanPush

            known = TraceBook(standard, group, collector.outbound)
            pairs = [(requests, steps) for requests, steps in receivers]
            made.append(SpanPush(pairs, standard, group, known, collector.outbound, name, now))
            book = known
    except Exception as error:  # noqa: BLE001 - as above
        _off(parts, Signal.TRACES, error)
    return made, book


def _off(parts: Parts, signal: Signal, error: Exception) -> None:
    parts.failed(ExporterStage.OTLP, str(signal), f"{signal} over OTLP are off: {error!r}")
