"""Metrics over OTLP: sends the values of ``/metrics`` on a timer to the receivers that the standard variables name."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from opentelemetry.sdk.metrics.export import MetricExportResult

from lightllm_otel.exporter.metric_rows import Row
from lightllm_otel.exporter.otlp_data import HAS_EXPONENTIAL, Deltas, metrics_data, resource
from lightllm_otel.exporter.otlp_sender import Interval, OtlpSender, Sender, wall_nanoseconds
from lightllm_otel.guard import log
from lightllm_otel.otel_environment import OtelEnvironment
from lightllm_otel.records.vocabulary import Signal
from lightllm_otel.reduce.group import Group

LAST_SECONDS = 2.0  # for the last batch when the exporter ends


class Collected(Protocol):
    """Source of the metrics: the collector behind ``/metrics``."""

    otlp_sender: OtlpSender

    def rows(self) -> dict[str, list[Row]]: ...


class OtlpMetrics:
    """Sender of the metrics of ``group`` to ``receivers`` (the SDK's exporters), once per ``otel_environment.metric_interval``.

    ``name`` is that of the group's folder. ``now`` is a monotonic clock and ``wall`` Unix time, both in seconds.
    """

    def __init__(
        self,
        receivers: Iterable[Any],
        otel_environment: OtelEnvironment,
        group: Group,
        collector: Collected,
        name: str,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        milliseconds = otel_environment.metric_timeout * 1e3
        self._receivers = list(receivers)
        self._senders = [
            Sender(Signal.METRICS, functools.partial(_export, receiver, milliseconds), collector.otlp_sender)
            for receiver in self._receivers
        ]
        self._group, self._collector, self._name = group, collector, name
        self._deltas = Deltas() if otel_environment.delta else None
        self._exponential = otel_environment.exponential
        if self._exponential and not HAS_EXPONENTIAL:
            log.warning(
                "This version of opentelemetry-sdk has no exponential histograms; explicit buckets are sent instead. "
                "Install opentelemetry-sdk 1.17 or newer, or unset OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"
            )
        self._now, self._wall = now, wall
        self._interval = Interval(otel_environment.metric_interval, now())
        self._start = wall_nanoseconds(wall)

    def poll(self) -> None:
        """Send the current values if the interval has passed and a rank has said what it is."""
        if self._interval.due(self._now()) and self._group.facts():
            self._push()

    def _push(self) -> None:
        who = resource(self._group.facts(), self._name)
        now = wall_nanoseconds(self._wall)
        data = metrics_data(self._collector.rows(), who, self._start, now, self._deltas, self._exponential)
        for sender in self._senders:
            sender.offer(data)

    def close(self) -> None:
        """Send the last values, and wait for at most ``LAST_SECONDS``."""
        if self._group.facts():
            self._push()
        for sender, receiver in zip(self._senders, self._receivers):
            if sender.drain(LAST_SECONDS):
                receiver.shutdown()


def _export(receiver: Any, milliseconds: float, data: Any) -> bool:
    taken: bool = receiver.export(data, timeout_millis=milliseconds) is MetricExportResult.SUCCESS
    return taken
