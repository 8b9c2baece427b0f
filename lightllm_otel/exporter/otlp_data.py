"""The table of metrics as OpenTelemetry's ``MetricsData``: the values of ``/metrics``, with explicit buckets.

The SDK has no interface for values that somebody else has added up, so what its exporters take is made here.
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

SCOPE = InstrumentationScope("lightllm_otel", __version__)
_EXEMPLARS = SdkExemplar is not None and "exemplars" in {
    field.name for field in dataclasses.fields(sdk.HistogramDataPoint)
}


def resource(facts: Mapping[str, Any], group: str) -> Resource:
    """Who speaks: service, host, GPU, model, place in the server. ``group``: the name of its folder.

    OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME have the last word.
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
        if facts.get("tp") == 1:  # a group's GPUs are on lightllm.gpu.info, by rank
            ours["hw.id"] = facts.get("gpu_uuid")
    known = {name: value for name, value in ours.items() if value not in (None, "")}
    return Resource.create({**known, **OTELResourceDetector().detect().attributes})


class Deltas:
    """Turns what was counted since the start into what was counted since the last call, where a receiver wants that."""

    def __init__(self) -> None:
        self._last: dict[Any, Any] = {}
        self._since = 0

    def window(self, start: int, now: int) -> int:
        """The start of the window that ends now."""
        since, self._since = self._since or start, now
        return since

    def of(self, key: Any, value: Any) -> Any:
        before = self._last.get(key, 0)
        self._last[key] = value
        return value - before


def metrics_data(
    rows: Mapping[str, Iterable[Row]], who: Resource, start: int, now: int, deltas: Optional[Deltas] = None
) -> sdk.MetricsData:
    """All metrics that have a value. ``start``: since when is counted; both in nanoseconds of Unix time."""
    since = deltas.window(start, now) if deltas is not None else start
    made = []
    for metric in metrics.METRICS:
        data = _data(metric, list(rows[metric.name]), since, now, deltas)
        if data.data_points:
            made.append(sdk.Metric(metric.otlp, metric.help, metric.unit, data))
    scope = sdk.ScopeMetrics(SCOPE, made, "")
    return sdk.MetricsData([sdk.ResourceMetrics(who, [scope], "")])


def _data(metric: metrics.Metric, rows: list[Row], start: int, now: int, deltas: Optional[Deltas]) -> Any:
    kind = sdk.AggregationTemporality.CUMULATIVE if deltas is None else sdk.AggregationTemporality.DELTA
    labelled = [(dict(zip(metric.labels, labels)), value) for labels, value in rows]
    if metric.kind == metrics.HISTOGRAM:
        histograms = [(labels, value) for labels, value in labelled if isinstance(value, Histogram)]
        return sdk.Histogram([_histogram(metric, *each, start, now, deltas) for each in histograms], kind)
    if metric.kind == metrics.INFO:
        return sdk.Gauge([sdk.NumberDataPoint(labels, 0, now, 1) for labels, _ in labelled])
    numbers = [(labels, _plain(value)) for labels, value in labelled if isinstance(value, (int, float, np.number))]
    if metric.kind == metrics.GAUGE:
        return sdk.Gauge([sdk.NumberDataPoint(labels, 0, now, value) for labels, value in numbers])
    if deltas is not None:
        numbers = [(labels, deltas.of((metric.name, *labels.values()), value)) for labels, value in numbers]
    return sdk.Sum([sdk.NumberDataPoint(labels, start, now, value) for labels, value in numbers], kind, True)


def _histogram(
    metric: metrics.Metric, labels: dict[str, str], value: Histogram, start: int, now: int, deltas: Optional[Deltas]
) -> sdk.HistogramDataPoint:
    counts, total = value.counts, value.total
    if deltas is not None:
        key = (metric.name, *labels.values())
        counts, total = deltas.of((*key, "counts"), counts.copy()), deltas.of((*key, "sum"), total)
    made: dict[str, Any] = {"exemplars": [_exemplar(each) for each in value.exemplars.values()]} if _EXEMPLARS else {}
    return sdk.HistogramDataPoint(
        attributes=labels, start_time_unix_nano=start, time_unix_nano=now, count=int(counts.sum()), sum=total,
        bucket_counts=counts.tolist(), explicit_bounds=value.bounds.tolist(),
        min=None, max=None, **made,  # type: ignore[arg-type]  # not kept, and optional in the protocol
    )  # fmt: skip


def _exemplar(exemplar: Exemplar) -> Any:
    return SdkExemplar({}, exemplar.value, int(exemplar.wall_time * 1e9), exemplar.span_id, exemplar.trace_id)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
