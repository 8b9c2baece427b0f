"""Senders that the standard OTEL_* variables ask for. OpenTelemetry's SDK is imported only if there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional, Protocol

from lightllm_otel.exporter.otlp_sender import loaded
from lightllm_otel.exporter.prometheus import GroupCollector
from lightllm_otel.exporter.traces import TraceBook
from lightllm_otel.guard import log
from lightllm_otel.otel_environment import OtelEnvironment
from lightllm_otel.parts import Parts
from lightllm_otel.records.vocabulary import ExporterStage, Signal
from lightllm_otel.reduce.group import Group


class Push(Protocol):
    """Sender that is polled, and decides itself when to send."""

    def poll(self) -> None: ...

    def close(self) -> None: ...


def pushes(
    otel_environment: OtelEnvironment,
    group: Group,
    collector: GroupCollector,
    name: str,
    parts: Parts,
    now: Callable[[], float],
) -> tuple[list[Push], Optional[TraceBook]]:
    """Return the senders, and the book of spans if spans are sent. ``name`` is that of the group's folder."""
    for problem in otel_environment.problems:
        log.error(problem)
    made: list[Push] = []
    book: Optional[TraceBook] = None
    try:
        if receivers := loaded(Signal.METRICS, otel_environment.metrics):
            from lightllm_otel.exporter.otlp_metrics import OtlpMetrics

            made.append(OtlpMetrics([each for (each,) in receivers], otel_environment, group, collector, name, now))
    except Exception as error:  # noqa: BLE001 - an incompatible SDK must not end the rest
        _off(parts, Signal.METRICS, error)
    try:
        if receivers := loaded(Signal.TRACES, otel_environment.traces, copies=2):
            from lightllm_otel.exporter.otlp_spans import OtlpSpans

            known = TraceBook(otel_environment, group, collector.otlp_sender)
            pairs = [(requests, steps) for requests, steps in receivers]
            made.append(OtlpSpans(pairs, otel_environment, group, known, collector.otlp_sender, name, now))
            book = known
    except Exception as error:  # noqa: BLE001 - as above
        _off(parts, Signal.TRACES, error)
    return made, book


def _off(parts: Parts, signal: Signal, error: Exception) -> None:
    parts.failed(ExporterStage.OTLP, str(signal), f"{signal} over OTLP are off: {error!r}")
