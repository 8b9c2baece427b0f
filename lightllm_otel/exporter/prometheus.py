"""Prometheus collector of a group: makes its metric families on each scrape."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import samples
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.core import (
    Metric as Family,
)
from prometheus_client.registry import Collector

from lightllm_otel import __version__
from lightllm_otel.exporter import metrics
from lightllm_otel.exporter.hardware import Hardware
from lightllm_otel.exporter.link import UNKNOWN, GroupLink, Ports
from lightllm_otel.exporter.metric_rows import Row, of_collectives, of_hardware
from lightllm_otel.exporter.otlp_sender import OtlpSender
from lightllm_otel.records.vocabulary import (
    UNATTRIBUTED,
    ExporterStage,
    Feature,
    IdleReason,
    Level,
    Mode,
    Operator,
    Phase,
    Stage,
)
from lightllm_otel.reduce.collectives import noise_seconds
from lightllm_otel.reduce.group import Group
from lightllm_otel.reduce.histogram import Exemplar, Histogram


class GroupCollector(Collector):
    """Collector of ``group`` and of the ``hardware`` of its ranks.

    ``link`` says how the GPUs are connected, as far as the exporter knows. ``otlp_sender`` counts what receivers did not take.
    ``server`` is the name of the server, and ``now`` returns Unix time in seconds.
    """

    def __init__(
        self, group: Group, hardware: Hardware | None = None, now: Callable[[], float] = time.time, server: str = ""
    ) -> None:
        self._hardware = hardware or Hardware()
        self.link = GroupLink(UNKNOWN, UNKNOWN)
        self.otlp_sender = OtlpSender()
        self._group = group
        self._server = server
        self._now = now
        self._started = now()

    def collect(self) -> Iterator[Family]:
        """Return all families, made at once so that no poll changes sums between two of them."""
        with self._group.lock:
            rows = self.rows()
            return iter([family(metric, rows.get(metric.name, ())) for metric in metrics.METRICS])

    def describe(self) -> Iterable[Family]:
        return ()  # registering must not collect

    def rows(self) -> dict[str, list[Row]]:
        """Return the rows of every metric in the table, by name. A section that fails has no rows."""
        rows: dict[str, list[Row]] = {metric.name: [] for metric in metrics.METRICS}
        sections = (
            self._now_in_flight, self._measured, self._of_collectives, self._described, self._of_hardware, self._self,
        )  # fmt: skip
        with self._group.lock:
            for section in sections:
                with self._group.parts(ExporterStage.METRICS, section.__name__.lstrip("_")):
                    rows.update(section())
        return rows

    def _of_collectives(self) -> dict[str, list[Row]]:
        return of_collectives(self._group.collectives)

    def _of_hardware(self) -> dict[str, list[Row]]:
        return of_hardware(self._hardware)

    def _measured(self) -> dict[str, list[Row]]:
        group = self._group
        estimated: list[Row] = [
            ((Operator.of(code).value, Phase.of(phase).value), float(seconds))
            for phase, by_operator in sorted(group.estimate.seconds.items())
            for code, seconds in enumerate(by_operator)
            if seconds
        ]
        estimated += [
            ((UNATTRIBUTED, Phase.of(phase).value), seconds)
            for phase, seconds in sorted(group.estimate.unattributed.items())
        ]
        return {
            "lightllm_gpu_operator_duration_seconds": [
                ((Operator.of(operator).value, Phase.of(phase).value, Mode.of(mode).value), histogram)
                for (operator, phase, mode), histogram in sorted(group.operators.histograms.items())
            ],
            "lightllm_gpu_operator_seconds_total": [
                ((Operator.of(operator).value, Phase.of(phase).value, str(rank)), seconds)
                for (operator, phase, rank), seconds in sorted(group.operators.seconds.items())
            ],
            "lightllm_gpu_operator_estimated_seconds_total": estimated,
            "lightllm_gpu_operator_compared_seconds_total": _by_operator(group.expectation.compared),
            "lightllm_gpu_operator_expected_seconds_total": _by_operator(group.expectation.expected),
            "lightllm_gpu_operator_flops_total": _by_operator(group.analytic.flops),
            "lightllm_gpu_operator_memory_bytes_total": _by_operator(group.analytic.memory_bytes),
            "lightllm_gpu_operator_starved_seconds_total": [
                ((Operator.of(operator).value, Phase.of(phase).value), seconds)
                for (operator, phase), seconds in sorted(group.operators.starved_seconds.items())
            ],
            "lightllm_gpu_step_duration_seconds": [
                ((Phase.of(phase).value, Mode.of(mode).value), histogram)
                for (phase, mode), histogram in sorted(group.steps.histograms.items())
            ],
            "lightllm_gpu_step_tokens_total": [
                ((Phase.of(p).value,), n) for p, n in sorted(group.computed.tokens.items())
            ],
            "lightllm_gpu_step_requests_total": [
                ((Phase.of(p).value,), n) for p, n in sorted(group.computed.requests.items())
            ],
            "lightllm_gpu_idle_seconds_total": [
                ((IdleReason.of(reason).value, str(rank)), seconds)
                for (reason, rank), seconds in sorted(group.steps.idle_seconds.items())
                if reason != IdleReason.NONE.code
            ],
        }

    def _now_in_flight(self) -> dict[str, list[Row]]:
        now = self._now()
        found = [
            ((str(rank),), float(known.base.get("in_flight_number", 0)), *known.in_flight(now))
            for rank, known in sorted(self._group.ranks.items())
            if known.header is not None
        ]
        return {
            "lightllm_gpu_step_in_flight_seconds": [(rank, seconds) for rank, _, _, seconds in found],
            "lightllm_gpu_steps_total": [(rank, earlier + number) for rank, earlier, number, _ in found],
        }

    def _described(self) -> dict[str, list[Row]]:
        facts = self._group.facts()
        known = {
            **facts,
            "server": self._server,
            "gpu": facts.get("gpu_name", ""),
            "link": self.link.name,
            "plugin": facts.get("plugin", __version__),
            "level": group_level(self._group) or facts.get("level", ""),
            "scope": self._group.matching.scope.value,
        }
        return {
            **self._peaks(),
            **{
                name: [(tuple(str(known.get(label, "")) for label in metrics.BY_NAME[name].labels), None)]
                for name in ("lightllm_server_info", "lightllm_otel_state_info")
                if facts
            },
            "lightllm_gpu_info": [
                ((str(number), *self._gpu(rank.facts)), None)
                for number, rank in sorted(self._group.ranks.items())
                if rank.facts.get("gpu_uuid")
            ],
            "lightllm_otel_feature_available": [
                ((feature.value,), float(feature.value not in facts["contracts"].get("lost", {})))
                for feature in Feature
                if "contracts" in facts
            ],
            "lightllm_otel_slot_installed": [
                ((operator,), float(found)) for operator, found in self._group.slots().items()
            ],
        }

    def _gpu(self, facts: dict[str, Any]) -> tuple[str, ...]:
        ports = self.link.ports.get(facts.get("pci_bus_id", ""), Ports())
        path = self.link.path if self.link.ports else UNKNOWN
        return (
            facts["gpu_uuid"],
            facts.get("gpu_name", ""),
            ports.nvlink if self.link.ports else UNKNOWN,
            ports.pcie,
            path,
        )

    def _peaks(self) -> dict[str, list[Row]]:
        """Return the peaks of the hardware; none for a GPU that is not in the table."""
        gpu = self._group.analytic.gpu
        peak = self.link.bytes_per_second
        return {
            "lightllm_gpu_peak_flops_per_second": [((), gpu.flops)] if gpu is not None else [],
            "lightllm_gpu_peak_memory_bytes_per_second": [((), gpu.memory_bytes_per_second)] if gpu is not None else [],
            "lightllm_gpu_peak_link_bytes_per_second": [((self.link.name,), peak)] if peak else [],
        }

    def _self(self) -> dict[str, list[Row]]:
        group = self._group
        return {
            "lightllm_otel_build_info": [((__version__, platform.python_version()), None)],
            "lightllm_otel_start_time_seconds": [((), self._started)],
            "lightllm_otel_steps_sampled_total": [((), group.counter("sampled_steps"))],
            "lightllm_otel_records_dropped_total": [((r.value,), n) for r, n in group.dropped().items()],
            "lightllm_otel_errors_total": [
                ((stage.value,), n) for stage, n in group.errors().items() if n or isinstance(stage, Stage)
            ],
            "lightllm_otel_hook_seconds_total": [((), group.counter("hook_seconds"))],
            "lightllm_otel_clock_quantum_seconds": self._by_mode("clock_quantum", "timestamp_quantum"),
            "lightllm_otel_boundary_cost_seconds": self._by_mode("boundary_cost", "timestamp_cost"),
            "lightllm_otel_steps_whole_only_total": [((w.value,), n) for w, n in group.whole().items()],
            "lightllm_otel_steps_unmatched_total": [((r.value,), n) for r, n in group.matching.unmatched.items()],
            "lightllm_otel_collective_noise_seconds": [
                ((mode.value,), noise_seconds(*group.clock(mode.code))) for mode in Mode if group.collectives.wait
            ],
            "lightllm_otel_instrumented_graphs": [((), group.instrumented_graphs())],
            "lightllm_otel_distortion_ratio": [((), ratio)] if (ratio := group.distortion.ratio) is not None else [],
            "lightllm_otel_export_errors_total": [((), sum(self.otlp_sender.errors.values()))],
            "lightllm_otel_spans_dropped_total": [((r.value,), n) for r, n in self.otlp_sender.dropped.items() if n],
            "lightllm_otel_data_age_seconds": [((), group.data_age(self._now()))],
        }

    def _by_mode(self, eager: str, graph: str) -> list[Row]:
        """Return the largest value over the ranks for the clock of each mode. A clock that is not used has 0 in the header."""
        headers: list[Any] = [rank.header for rank in self._group.ranks.values() if rank.header is not None]
        values = {mode: max((float(h[name]) for h in headers), default=0.0)
                  for mode, name in ((Mode.EAGER, eager), (Mode.GRAPH, graph))}  # fmt: skip
        return [((mode.value,), value) for mode, value in values.items() if mode is Mode.EAGER or value]


def _by_operator(sums: Mapping[tuple[int, int], float]) -> list[Row]:
    return [
        ((Operator.of(operator).value, Phase.of(phase).value), amount)
        for (operator, phase), amount in sorted(sums.items())
    ]


def group_level(group: Group) -> str:
    """Return the level that live control or the settings have set; empty before a rank has said so."""
    headers: list[Any] = [rank.header for _, rank in sorted(group.ranks.items()) if rank.header is not None]
    return Level.of(int(headers[0]["level"])).value if headers else ""


def buckets(histogram: Histogram) -> list[Any]:
    """Return ``(le, count)`` pairs, with an exemplar if the bucket has one. Only OpenMetrics shows exemplars."""
    shown = histogram.exemplars
    pairs = enumerate(histogram.cumulative())
    return [(*pair, _exemplar(shown[at])) if at in shown else pair for at, pair in pairs]


def _exemplar(exemplar: Exemplar) -> Any:
    labels = {"trace_id": f"{exemplar.trace_id:032x}", "span_id": f"{exemplar.span_id:016x}"}
    return samples.Exemplar(labels, exemplar.value, exemplar.wall_time)


def family(metric: metrics.Metric, rows: Iterable[Row]) -> Family:
    """Return one metric of the table with its values, as prometheus_client wants it."""
    if metric.kind == metrics.INFO:
        info = InfoMetricFamily(metric.name[: -len("_info")], metric.help)
        for labels, _ in rows:
            info.add_metric([], dict(zip(metric.labels, labels)))
        return info
    if metric.kind == metrics.HISTOGRAM:
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, value in rows:
            if isinstance(value, Histogram):
                histogram.add_metric(labels, buckets(value), value.total)
        return histogram
    kind = CounterMetricFamily if metric.kind == metrics.COUNTER else GaugeMetricFamily
    plain = kind(metric.name, metric.help, labels=metric.labels)
    for labels, value in rows:
        if isinstance(value, (int, float)):
            plain.add_metric(labels, value)
    return plain
