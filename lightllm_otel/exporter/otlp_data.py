"""The table of metrics as OpenTelemetry's ``MetricsData``, with the values of ``/metrics``.

The SDK has no interface for values that somebody else has added up, so this module makes what the SDK's exporters take.
Histograms have the explicit buckets of ``/metrics``, or the exponential ones that the same observations fill.
"""

from __future__ import annotations

import dataclasses
import platform
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Optional

import numpy as np
from opentelemetry.sdk.metrics import export as sdk
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from lightllm_otel import __version__
from lightllm_otel.exporter import metrics
from lightllm_otel.exporter.metric_rows import Row
from lightllm_otel.reduce.histogram import Exemplar, Histogram

try:  # from 1.28 on
    from opentelemetry.sdk.metrics._internal.exemplar import Exemplar as SdkExemplar
except ImportError:
    SdkExemplar = None  # type: ignore[assignment,misc]

try:  # public since 1.17; an installation that a resolver left older keeps explicit buckets
    from opentelemetry.sdk.metrics.export import Buckets, ExponentialHistogram, ExponentialHistogramDataPoint
except ImportError:
    HAS_EXPONENTIAL = False
else:
    HAS_EXPONENTIAL = True

SCOPE = InstrumentationScope("lightllm_otel", __version__)
_EXEMPLARS = SdkExemplar is not None and "exemplars" in {
    field.name for field in dataclasses.fields(sdk.HistogramDataPoint)
}


def resource(facts: Mapping[str, Any], group: str) -> Resource:
    """Return the resource: service, host, GPU, model and place in the server. ``group`` is the name of the group's folder.

    OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME override its attributes.
    """
    host = platform.node()
    ours: dict[str, Any] = {
        "service.name": "lightllm",
        "service.version": facts.get("lightllm"),
        "service.instance.id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"lightllm-otel:{host}/{group}")),
        "host.name": host,
        "lightllm.model": facts.get("model"),
        "lightllm.dtype": facts.get("dtype"),
        "lightllm.tp": facts.get("tp"),
        "lightllm.dp": facts.get("dp"),
        "lightllm.dp_rank": facts.get("dp_rank"),
    }
    if facts.get("gpu_name"):
        ours |= {"hw.type": "gpu", "hw.name": facts["gpu_name"], "hw.vendor": str(facts["gpu_name"]).split()[0]}
        if facts.get("tp") == 1:  # lightllm.gpu.info names the GPUs of a larger group, by rank
            ours["hw.id"] = facts.get("gpu_uuid")
    known = {name: value for name, value in ours.items() if value not in (None, "")}
    return Resource.create({**known, **OTELResourceDetector().detect().attributes})


class Deltas:
    """Difference of each counter and histogram to its value at the last call, for receivers that want deltas."""

    def __init__(self) -> None:
        self._last: dict[Any, Any] = {}
        self._since = 0

    def window(self, start: int, now: int) -> int:
        """Return the start of the window that ends now, in nanoseconds of Unix time."""
        since, self._since = self._since or start, now
        return since

    def of(self, key: Any, value: Any) -> Any:
        """Return how much the counter ``key`` has grown."""
        before = self._last.get(key, 0)
        self._last[key] = value
        return value - before

    def of_histogram(self, key: Any, value: Histogram) -> Histogram:
        """Return what the histogram ``key`` has observed."""
        before = self._last.get(key)
        self._last[key] = value.snapshot()
        return value if before is None else value.since(before)


def metrics_data(
    rows: Mapping[str, Iterable[Row]],
    who: Resource,
    start: int,
    now: int,
    deltas: Optional[Deltas] = None,
    exponential: bool = False,
) -> sdk.MetricsData:
    """Return all metrics that have a value. ``start`` (of the counters) and ``now`` are nanoseconds of Unix time.

    ``exponential`` asks for exponential histograms; an SDK that has none gets explicit buckets.
    """
    since = deltas.window(start, now) if deltas is not None else start
    made = []
    for metric in metrics.METRICS:
        data = _data(metric, list(rows[metric.name]), since, now, deltas, exponential and HAS_EXPONENTIAL)
        if data.data_points:
            made.append(sdk.Metric(metric.otlp, metric.help, metric.unit, data))
    scope = sdk.ScopeMetrics(SCOPE, made, "")
    return sdk.MetricsData([sdk.ResourceMetrics(who, [scope], "")])


def _data(
    metric: metrics.Metric, rows: list[Row], start: int, now: int, deltas: Optional[Deltas], exponential: bool
) -> Any:
    kind = sdk.AggregationTemporality.CUMULATIVE if deltas is None else sdk.AggregationTemporality.DELTA
    labelled = [(dict(zip(metric.labels, labels)), value) for labels, value in rows]
    if metric.kind == metrics.HISTOGRAM:
        histograms = [(labels, value) for labels, value in labelled if isinstance(value, Histogram)]
        if deltas is not None:
            histograms = [
                (labels, deltas.of_histogram((metric.name, *labels.values()), value)) for labels, value in histograms
            ]
        if exponential:
            return ExponentialHistogram([_exponential(*each, start, now) for each in histograms], kind)
        return sdk.Histogram([_explicit(*each, start, now) for each in histograms], kind)
    if metric.kind == metrics.INFO:
        return sdk.Gauge([sdk.NumberDataPoint(labels, 0, now, 1) for labels, _ in labelled])
    numbers = [(labels, _plain(value)) for labels, value in labelled if isinstance(value, (int, float, np.number))]
    if metric.kind == metrics.GAUGE:
        return sdk.Gauge([sdk.NumberDataPoint(labels, 0, now, value) for labels, value in numbers])
    if deltas is not None:
        numbers = [(labels, deltas.of((metric.name, *labels.values()), value)) for labels, value in numbers]
    return sdk.Sum([sdk.NumberDataPoint(labels, start, now, value) for labels, value in numbers], kind, True)


def _explicit(labels: dict[str, str], value: Histogram, start: int, now: int) -> sdk.HistogramDataPoint:
    return sdk.HistogramDataPoint(
        attributes=labels, start_time_unix_nano=start, time_unix_nano=now, count=value.count, sum=value.total,
        bucket_counts=value.counts.tolist(), explicit_bounds=value.bounds.tolist(),
        min=None, max=None, **_exemplars(value),  # type: ignore[arg-type]  # not kept, and optional in the protocol
    )  # fmt: skip


def _exponential(labels: dict[str, str], value: Histogram, start: int, now: int) -> Any:
    found = value.exponential()
    return ExponentialHistogramDataPoint(
        attributes=labels, start_time_unix_nano=start, time_unix_nano=now, count=value.count, sum=value.total,
        scale=found.scale, zero_count=found.zeros, positive=Buckets(found.offset, found.counts), negative=Buckets(0, []),
        flags=0, min=None, max=None, **_exemplars(value),  # type: ignore[arg-type]  # as above
    )  # fmt: skip


def _exemplars(value: Histogram) -> dict[str, Any]:
    return {"exemplars": [_exemplar(each) for each in value.exemplars.values()]} if _EXEMPLARS else {}


def _exemplar(exemplar: Exemplar) -> Any:
    return SdkExemplar({}, exemplar.value, int(exemplar.wall_time * 1e9), exemplar.span_id, exemplar.trace_id)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
