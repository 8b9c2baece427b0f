"""OpenTelemetry's environment variables, as far as the plugin uses them: read once, without OpenTelemetry's SDK.

LIGHTLLM_OTEL alone exports nothing over OTLP: the environment must also name an exporter or an endpoint.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

SAMPLERS = ("always_on", "always_off", "traceidratio")
EXPLICIT, EXPONENTIAL = "explicit_bucket_histogram", "base2_exponential_bucket_histogram"
_PARENT = "parentbased_"
_OTHERS = ("prometheus", "none", "")  # nothing to send; /metrics is served in any case


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Sampler of traces. ``root``: the share of requests without a caller's trace that get one, from 0 to 1.

    ``follow``: a caller's decision is respected.
    """

    root: float = 1.0
    follow: bool = True


@dataclasses.dataclass(frozen=True)
class OtelEnvironment:
    """OpenTelemetry's settings. ``metrics``, ``traces``: names of exporters (entry points of the SDK); empty: no export.

    All times are in seconds. ``propagate``: ``traceparent`` is read. ``delta``: counters are those since the last export, not
    since the start. ``exponential``: histograms have exponential buckets. ``problems``: a sentence for each variable that
    could not be used.
    """

    metrics: tuple[str, ...] = ()
    traces: tuple[str, ...] = ()
    metric_interval: float = 60.0
    metric_timeout: float = 30.0
    span_delay: float = 5.0
    span_timeout: float = 30.0
    span_queue: int = 2048
    span_batch: int = 512
    sampler: Sampler = Sampler()
    propagate: bool = True
    delta: bool = False
    exponential: bool = False
    problems: tuple[str, ...] = ()

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> OtelEnvironment:
        """Read all variables. A value that cannot be used is reported, and its default is used."""
        reader = _Reader(environ)
        if reader.text("OTEL_SDK_DISABLED").lower() == "true":
            return cls()
        preference = reader.text("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE").lower()
        propagators = reader.text("OTEL_PROPAGATORS").lower() or "tracecontext"
        return cls(
            metrics=reader.exporters("METRICS"),
            traces=reader.exporters("TRACES"),
            metric_interval=reader.seconds("OTEL_METRIC_EXPORT_INTERVAL", cls.metric_interval),
            metric_timeout=reader.seconds("OTEL_METRIC_EXPORT_TIMEOUT", cls.metric_timeout),
            span_delay=reader.seconds("OTEL_BSP_SCHEDULE_DELAY", cls.span_delay),
            span_timeout=reader.seconds("OTEL_BSP_EXPORT_TIMEOUT", cls.span_timeout),
            span_queue=reader.count("OTEL_BSP_MAX_QUEUE_SIZE", cls.span_queue),
            span_batch=reader.count("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", cls.span_batch),
            sampler=reader.sampler(),
            propagate="tracecontext" in propagators,
            delta=preference in ("delta", "lowmemory"),
            exponential=reader.exponential(),
            problems=tuple(reader.problems),
        )


class _Reader:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[str] = []

    def text(self, name: str) -> str:
        return self._environ.get(name, "").strip()

    def exporters(self, signal: str) -> tuple[str, ...]:
        """Return the exporters of a signal. An endpoint without a named exporter means OTLP."""
        named = self.text(f"OTEL_{signal}_EXPORTER")
        endpoint = self.text(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT") or self.text("OTEL_EXPORTER_OTLP_ENDPOINT")
        names = named.split(",") if named else ["otlp"] if endpoint else []
        return tuple(
            self._protocol(signal) if name == "otlp" else name for name in map(str.strip, names) if name not in _OTHERS
        )

    def _protocol(self, signal: str) -> str:
        name = f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL"
        named = self.text(name) or self.text("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
        known = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc", "http/json": "otlp_json_http"}
        if named not in known:
            self.problems.append(f"{name}={named} is not one of {', '.join(known)}; http/protobuf is used")
        return known.get(named, "otlp_proto_http")

    def seconds(self, name: str, default: float) -> float:
        return self.number(name, default * 1000.0) / 1000.0

    def count(self, name: str, default: int) -> int:
        return max(1, int(self.number(name, default)))

    def number(self, name: str, default: float) -> float:
        text = self.text(name)
        if not text:
            return default
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if number > 0 and math.isfinite(number):
            return number
        self.problems.append(f"{name}={text} is not a number above 0; {default:g} is used")
        return default

    def exponential(self) -> bool:
        name = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"
        named = self.text(name).lower() or EXPLICIT
        if named not in (EXPLICIT, EXPONENTIAL):
            self.problems.append(f"{name}={named} is neither {EXPLICIT} nor {EXPONENTIAL}; {EXPLICIT} is used")
        return named == EXPONENTIAL

    def sampler(self) -> Sampler:
        named = self.text("OTEL_TRACES_SAMPLER").lower() or "parentbased_always_on"
        follow = named.startswith(_PARENT)
        kind = named[len(_PARENT) :] if follow else named
        if kind not in SAMPLERS:
            self.problems.append(f"OTEL_TRACES_SAMPLER={named} is not supported; parentbased_always_on is used")
            return Sampler()
        if kind != "traceidratio":
            return Sampler(float(kind == "always_on"), follow)
        return Sampler(self._ratio(), follow)

    def _ratio(self) -> float:
        text = self.text("OTEL_TRACES_SAMPLER_ARG") or "1"
        try:
            ratio = float(text)
        except ValueError:
            ratio = math.nan
        if 0.0 <= ratio <= 1.0:
            return ratio
        self.problems.append(f"OTEL_TRACES_SAMPLER_ARG={text} is not a share from 0 to 1; 1 is used")
        return 1.0
