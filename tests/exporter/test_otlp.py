"""Metrics over OTLP: what a real receiver gets, by HTTP and by gRPC, against what a scraper gets of the same group."""

import logging
import subprocess
import sys
import threading

import pytest
import records
from groups import full_group
from prometheus_client import CollectorRegistry

from lightllm_otel.exporter.exporter import Exporter
from lightllm_otel.exporter.metrics import COUNTER, GAUGE, HISTOGRAM, INFO, METRICS
from lightllm_otel.exporter.otlp_sender import OtlpSender, Sender, last_words, loaded
from lightllm_otel.exporter.prometheus import GroupCollector
from lightllm_otel.otel_environment import OtelEnvironment, Sampler
from lightllm_otel.records.folder import group_folder, ring_path
from lightllm_otel.records.vocabulary import ExporterStage, Operator, Signal
from lightllm_otel.records.writer import RingWriter
from lightllm_otel.reduce.histogram import Exemplar, Histogram
from lightllm_otel.settings import Settings

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otlp is not installed")
pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="the extra otlp-grpc is not installed")

from receiver import Receiver, attributes_of, closed_port, points_of

from lightllm_otel.exporter import otlp_data as data_module
from lightllm_otel.exporter import otlp_metrics as push_module
from lightllm_otel.exporter.otlp_data import SdkExemplar
from lightllm_otel.exporter.otlp_metrics import OtlpMetrics

PROTOCOLS = ("http/protobuf", "grpc")
# What a receiver makes of units when it translates to Prometheus' names.
WORDS = {
    "s": "seconds",
    "By": "bytes",
    "By/s": "bytes_per_second",
    "{flop}/s": "per_second",
    "Hz": "hertz",
    "Cel": "celsius",
    "W": "watts",
}


def translated(name, unit, kind):
    """OpenTelemetry's rules for Prometheus: dots become underscores, then the unit's word, then ``_total``."""
    parts = [name.replace(".", "_")]
    if word := WORDS.get(unit) or ("ratio" if unit == "1" and kind == GAUGE else ""):
        parts.append(word)
    return "_".join([*parts, *(["total"] if kind == COUNTER else [])])


@pytest.fixture(params=PROTOCOLS)
def receiver(request):
    made = Receiver(request.param)
    yield made
    made.close()


@pytest.fixture
def environ(monkeypatch):
    """Sets the standard variables of this process, as a server's environment would have them."""

    def put(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return OtelEnvironment.from_env(dict(variables))

    return put


@pytest.fixture
def now():
    return [0.0]


@pytest.fixture
def pushing(now, environ):
    """``pushing(group, receiver, **variables)`` → (collector, push): one that has not pushed yet."""
    pushes = []

    def make(group, receiver, **variables):
        otel_environment = environ(**receiver.environ, **variables)
        collector = GroupCollector(group, now=lambda: 100.0)
        made = OtlpMetrics(
            [each for (each,) in loaded(Signal.METRICS, otel_environment.metrics)], otel_environment, group, collector,
            "127.0.0.1-1-dp0",
            now=lambda: now[0], wall=lambda: 1e9 + now[0],
        )  # fmt: skip
        pushes.append(made)
        return collector, made

    yield make
    for each in pushes:
        each._group.ranks.clear()  # nothing more to say
        each.close()


def scraped(collector):
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return {(s.name, frozenset(s.labels.items())): s.value for family in registry.collect() for s in family.samples}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_receiver_that_translates_gets_the_names_of_a_scrape(metric):
    assert metric.otlp.startswith("lightllm.")
    assert translated(metric.otlp, metric.unit, metric.kind) == metric.name


def test_no_two_metrics_have_one_name_over_otlp():
    assert len({metric.otlp for metric in METRICS}) == len(METRICS)


def test_values_over_otlp_equal_those_of_a_scrape(receiver, pushing, now):
    collector, push = pushing(full_group(ranks=2), receiver)
    now[0] = 60.0
    push.poll()
    (request,) = receiver.wait(lambda r: r.metrics)
    expected = scraped(collector)
    points, kinds = points_of(request), {metric.otlp: metric for metric in METRICS}
    compared = set()
    for (name, attributes), (sent, point) in points.items():
        metric = kinds[name]
        assert (sent.unit, sent.description) == (metric.unit, metric.help)
        if metric.kind == HISTOGRAM:
            running, cumulative = 0, []
            for count in point.bucket_counts:
                running += count
                cumulative.append(float(running))
            bounds = [f"{bound:.7g}" for bound in point.explicit_bounds] + ["+Inf"]
            for bound, value in zip(bounds, cumulative):
                key = (f"{metric.name}_bucket", attributes | {("le", bound)})
                assert expected[key] == value
                compared.add(key)
            for suffix, value in (("count", point.count), ("sum", point.sum)):
                key = (f"{metric.name}_{suffix}", attributes)
                assert expected[key] == value
                compared.add(key)
        else:
            key = (metric.name, attributes)
            assert expected[key] == getattr(point, point.WhichOneof("value"))
            compared.add(key)
            assert sent.WhichOneof("data") == ("sum" if metric.kind == COUNTER else "gauge")
    assert compared == set(expected)
    assert {metric.kind for metric in METRICS if metric.otlp in {name for name, _ in points}} >= {COUNTER, GAUGE, INFO}


EXPONENTIAL = {"OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": "base2_exponential_bucket_histogram"}


def test_exponential_histograms_hold_the_observations_of_a_scrape(receiver, pushing, now):
    """Every bound of /metrics is a bound of the exponential buckets, or lies where all observations are on one side of it."""
    group = full_group(ranks=2)
    group.add(0, records.batch(*(records.step(seconds=2.0**-power) for power in range(12))))
    collector, push = pushing(group, receiver, **EXPONENTIAL)
    now[0] = 60.0
    push.poll()
    (request,) = receiver.wait(lambda r: r.metrics)
    expected, kinds = scraped(collector), {metric.otlp: metric for metric in METRICS}
    sent = {key: both for key, both in points_of(request).items() if kinds[key[0]].kind == HISTOGRAM}
    assert {data.WhichOneof("data") for data, _ in sent.values()} == {"exponential_histogram"}
    assert any(point.zero_count for (name, _), (_, point) in sent.items() if name.endswith("wait"))
    for (name, attributes), (data, point) in sent.items():
        metric, counts = kinds[name], list(point.positive.bucket_counts)
        assert data.exponential_histogram.aggregation_temporality == 2  # cumulative
        assert expected[f"{metric.name}_count", attributes] == point.count == point.zero_count + sum(counts)
        assert expected[f"{metric.name}_sum", attributes] == point.sum
        assert not point.negative.bucket_counts
        assert len(counts) <= 160
        upper = [2.0 ** ((point.positive.offset + at + 1) / 2.0**point.scale) for at in range(len(counts))]
        for bound in metric.bounds:
            at_most = point.zero_count + sum(count for count, end in zip(counts, upper) if end <= bound)
            assert expected[f"{metric.name}_bucket", attributes | {("le", f"{bound:.7g}")}] == at_most


def test_a_receiver_that_wants_exponential_deltas_gets_what_was_added(receiver, pushing, now):
    group = full_group(ranks=1)
    _, push = pushing(group, receiver, **EXPONENTIAL, OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE="delta")
    now[0] = 60.0
    push.poll()
    receiver.wait(lambda r: len(r.metrics) == 1)
    group.add(0, records.batch(records.step(operators=[(Operator.FFN, 0.5)])))
    now[0] = 120.0
    push.poll()
    receiver.wait(lambda r: len(r.metrics) == 2)
    labels = frozenset({"operator": "ffn", "phase": "decode", "mode": "eager"}.items())
    metric, added = points_of(receiver.metrics[1])["lightllm.gpu.operator.duration", labels]
    assert (added.count, added.sum, added.scale, added.zero_count) == (1, 0.5, 3, 0)
    assert (added.positive.offset, list(added.positive.bucket_counts)) == (-9, [1])  # (2 ** (-9 / 8), 2 ** -1]
    assert metric.exponential_histogram.aggregation_temporality == 1  # delta


def test_without_exponential_histograms_in_the_sdk_explicit_ones_are_sent_and_it_is_said(
    receiver, pushing, now, monkeypatch, caplog
):
    for module in (push_module, data_module):
        monkeypatch.setattr(module, "HAS_EXPONENTIAL", False)
    _, push = pushing(full_group(ranks=1), receiver, **EXPONENTIAL)
    now[0] = 60.0
    push.poll()
    (request,) = receiver.wait(lambda r: r.metrics)
    assert {"histogram"} == {
        metric.WhichOneof("data")
        for metric, _ in points_of(request).values()
        if "histogram" in metric.WhichOneof("data")
    }
    assert "explicit buckets are sent instead" in caplog.text


def test_counters_are_monotonic_since_the_exporters_start(receiver, pushing, now):
    _, push = pushing(full_group(ranks=1), receiver)
    now[0] = 60.0
    push.poll()
    (request,) = receiver.wait(lambda r: r.metrics)
    sums = [(metric.sum, point) for metric, point in points_of(request).values() if metric.WhichOneof("data") == "sum"]
    assert sums
    for data, point in sums:
        assert data.is_monotonic
        assert data.aggregation_temporality == 2  # cumulative
        assert (point.start_time_unix_nano, point.time_unix_nano) == (10**18, 10**18 + 60 * 10**9)


def test_a_receiver_that_wants_deltas_gets_what_was_added(receiver, pushing, now):
    group = full_group(ranks=1)
    _, push = pushing(group, receiver, OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE="delta")
    now[0] = 60.0
    push.poll()
    receiver.wait(lambda r: len(r.metrics) == 1)
    group.add(0, records.batch(records.step(operators=[(Operator.FFN, 0.5)])))
    now[0] = 120.0
    push.poll()
    receiver.wait(lambda r: len(r.metrics) == 2)
    points = points_of(receiver.metrics[1])
    labels = {"operator": "ffn", "phase": "decode"}
    _, added = points["lightllm.gpu.operator", frozenset({**labels, "rank": "0"}.items())]
    assert (added.as_double, added.start_time_unix_nano) == (0.5, 10**18 + 60 * 10**9)
    metric, added = points["lightllm.gpu.operator.duration", frozenset({**labels, "mode": "eager"}.items())]
    assert (added.count, added.sum, sum(added.bucket_counts)) == (1, 0.5, 1)
    assert metric.histogram.aggregation_temporality == 1  # delta


def test_the_interval_is_the_standard_variables(receiver, pushing, now):
    _, push = pushing(full_group(ranks=1), receiver, OTEL_METRIC_EXPORT_INTERVAL="5000")
    for now[0] in (1.0, 4.9, 5.0, 5.1, 9.9, 10.0):
        push.poll()
        push._senders[0].drain(5)
    assert len(receiver.metrics) == 2


def test_the_resource_says_who_speaks_and_the_variables_have_the_last_word(receiver, pushing, now):
    _, push = pushing(
        full_group(ranks=1), receiver, OTEL_SERVICE_NAME="chat-eu", OTEL_RESOURCE_ATTRIBUTES="team=a,host.name=h"
    )
    now[0] = 60.0
    push.poll()
    (request,) = receiver.wait(lambda r: r.metrics)
    said = attributes_of(request.resource_metrics[0].resource)
    assert said["service.name"] == "chat-eu"
    assert (said["team"], said["host.name"]) == ("a", "h")
    assert (said["hw.type"], said["hw.name"], said["hw.vendor"]) == ("gpu", "NVIDIA H200", "NVIDIA")
    assert (said["lightllm.model"], said["lightllm.tp"], said["lightllm.dp_rank"]) == ("llama-7b", 1, 0)
    assert (said["hw.id"], said["service.version"]) == ("GPU-0", "0.0.1")


@pytest.mark.skipif(SdkExemplar is None, reason="opentelemetry-sdk has no exemplars before 1.28")
def test_an_exemplar_of_a_histogram_leads_to_its_trace(receiver, pushing, now):
    group = full_group(ranks=1)
    histogram = next(iter(group.steps.histograms.values()))
    histogram.show(Exemplar(0.01, 1e9, 0xABC, 0xDEF))
    _, push = pushing(group, receiver)
    now[0] = 60.0
    push.poll()
    (request,) = receiver.wait(lambda r: r.metrics)
    found = [
        exemplar
        for metric, point in points_of(request).values()
        if metric.WhichOneof("data") == "histogram"
        for exemplar in point.exemplars
    ]
    (exemplar,) = found
    assert (int.from_bytes(exemplar.trace_id, "big"), int.from_bytes(exemplar.span_id, "big")) == (0xABC, 0xDEF)
    assert (exemplar.as_double, exemplar.time_unix_nano) == (0.01, 10**18)


def test_the_last_exemplar_of_a_bucket_is_kept():
    histogram = Histogram(records.np.array([1.0, 2.0]))
    for value, trace in ((0.5, 1), (1.0, 2), (1.5, 3), (9.0, 4)):
        histogram.show(Exemplar(value, 0.0, trace, 1))
    assert {at: exemplar.trace_id for at, exemplar in histogram.exemplars.items()} == {0: 2, 1: 3, 2: 4}


class TestAReceiverThat:
    """… is no good costs a counted, visible error, and nobody waits for it."""

    def test_refuses_is_counted_and_said_once(self, receiver, pushing, now, caplog):
        caplog.set_level(logging.INFO, "lightllm_otel")
        receiver.mood = "refuse"
        collector, push = pushing(full_group(ranks=1), receiver)
        for now[0] in (60.0, 120.0, 180.0):
            push.poll()
            assert push._senders[0].drain(10)
        assert receiver.refused == 3
        assert scraped(collector)["lightllm_otel_export_errors_total", frozenset()] == 3
        lines = [record.message for record in caplog.records if record.name == "lightllm_otel"]
        assert len(lines) == 1
        assert "metrics over OTLP do not arrive" in lines[0]
        assert any(word in lines[0] for word in ("400", "INVALID_ARGUMENT"))
        receiver.mood = "take"
        now[0] = 240.0
        push.poll()
        receiver.wait(lambda r: r.metrics)
        push._senders[0].drain(5)
        assert caplog.records[-1].message == "metrics over OTLP arrive again"

    def test_refuses_does_not_fill_our_log(self):
        """What the SDK logs of each failure goes nowhere but into our one line."""
        last_words.listen()
        logger = logging.getLogger("opentelemetry")
        assert not logger.propagate
        assert last_words in logger.handlers

    def test_vanishes_is_counted_and_found_again(self, pushing, now, monkeypatch, caplog):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        receiver = Receiver("http/protobuf")
        collector, push = pushing(full_group(ranks=1), receiver)
        receiver.close()
        now[0] = 60.0
        push.poll()
        assert push._senders[0].drain(20)
        assert collector.otlp_sender.errors[Signal.METRICS] == 1
        again = Receiver("http/protobuf", receiver.port)
        now[0] = 120.0
        push.poll()
        again.wait(lambda r: r.metrics)
        again.close()

    def test_hangs_keeps_nobody_waiting(self, receiver, pushing, now, monkeypatch):
        monkeypatch.setattr(push_module, "LAST_SECONDS", 0.1)
        receiver.mood = "hang"
        collector, push = pushing(full_group(ranks=1), receiver)
        done = threading.Event()

        def polls():
            for now[0] in (60.0, 120.0, 180.0, 240.0):
                push.poll()
            push.close()
            done.set()

        threading.Thread(target=polls, daemon=True).start()
        assert done.wait(5)
        assert collector.otlp_sender.errors[Signal.METRICS] >= 2  # those that would have had to wait behind it


def test_an_exporter_pushes_what_its_ranks_wrote(tmp_path, receiver, environ, now):
    folder = group_folder(tmp_path, "127.0.0.1-28765-dp0")
    ring = RingWriter(ring_path(folder, 0), 1)
    ring.describe(records.FACTS)
    ring.write(*records.step(operators=[(Operator.FFN, 0.5)]))
    otel_environment = environ(**receiver.environ, OTEL_METRIC_EXPORT_INTERVAL="1000", OTEL_TRACES_EXPORTER="none")
    exporter = Exporter(
        folder,
        Settings.from_env({"LIGHTLLM_OTEL_PORT": str(closed_port())}),
        lambda: now[0],
        otel_environment=otel_environment,
    )
    exporter.poll()
    assert not receiver.metrics
    now[0] = 1.0
    exporter.poll()
    (request,) = receiver.wait(lambda r: r.metrics)
    labels = frozenset({"operator": "ffn", "phase": "decode", "rank": "0"}.items())
    assert points_of(request)["lightllm.gpu.operator", labels][1].as_double == 0.5
    exporter.close()
    receiver.wait(lambda r: len(r.metrics) == 2)  # the last word


def test_a_sender_goes_on_when_sending_fails():
    sent, otlp_sender = [], OtlpSender()
    sender = Sender(Signal.METRICS, lambda batch: sent.append(batch) or 1 / 0, otlp_sender)
    for batch in range(3):
        assert sender.offer(batch)
        assert sender.drain(5)
    assert (sent, otlp_sender.errors[Signal.METRICS]) == ([0, 1, 2], 3)


def test_an_sdk_that_lacks_something_turns_otlp_off_and_nothing_else(tmp_path, receiver, environ, monkeypatch, caplog):
    monkeypatch.setitem(
        sys.modules, "lightllm_otel.exporter.otlp_metrics", None
    )  # importing it fails, as with an SDK of 2021
    otel_environment = environ(**receiver.environ, OTEL_TRACES_EXPORTER="none")
    exporter = Exporter(group_folder(tmp_path, "group"), Settings.from_env({}), otel_environment=otel_environment)
    assert exporter.group.errors()[ExporterStage.OTLP] == 1
    said = [record.message for record in caplog.records if "metrics over OTLP are off" in record.message]
    assert len(said) == 1  # a sender of an earlier test may still say something
    exporter.poll()
    exporter.close()


def test_without_its_package_otlp_is_one_clear_sentence(caplog):
    assert loaded(Signal.METRICS, ["otlp_json_http"]) == []
    assert loaded(Signal.TRACES, ["otlp_nowhere"]) == []
    first, second = (record.message for record in caplog.records)
    assert "metrics over OTLP are off: no exporter otlp_json_http for metrics is installed" in first
    assert "/metrics is not affected" in second


def test_nothing_is_imported_that_nobody_asked_for(tmp_path):
    script = (
        "import sys; from pathlib import Path; from lightllm_otel.exporter.exporter import Exporter;"
        "from lightllm_otel.settings import Settings;"
        f"Exporter(Path({str(tmp_path)!r}), Settings.from_env({{}}));"
        "assert not [name for name in sys.modules if name.startswith(('opentelemetry', 'grpc'))]"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


class TestTheStandardVariables:
    def test_nothing_is_exported_unless_something_asks_for_it(self):
        assert OtelEnvironment.from_env({"LIGHTLLM_OTEL": "1"}) == OtelEnvironment()
        assert (OtelEnvironment().metrics, OtelEnvironment().traces) == ((), ())

    @pytest.mark.parametrize(
        ("environ", "metrics", "traces"),
        [
            ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, ("otlp_proto_http",), ("otlp_proto_http",)),
            ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318"}, (), ("otlp_proto_http",)),
            ({"OTEL_METRICS_EXPORTER": "otlp"}, ("otlp_proto_http",), ()),
            ({"OTEL_METRICS_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ("otlp_proto_grpc",), ()),
            ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc",
              "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, (), ("otlp_proto_grpc",)),
            ({"OTEL_METRICS_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, (), ("otlp_proto_http",)),
            ({"OTEL_METRICS_EXPORTER": "prometheus, console"}, ("console",), ()),
            ({"OTEL_SDK_DISABLED": "true", "OTEL_METRICS_EXPORTER": "otlp"}, (), ()),
        ],
    )  # fmt: skip
    def test_name_exporters(self, environ, metrics, traces):
        found = OtelEnvironment.from_env(environ)
        assert (found.metrics, found.traces) == (metrics, traces)

    @pytest.mark.parametrize(
        ("environ", "sampler"),
        [
            ({}, Sampler(1.0, True)),
            ({"OTEL_TRACES_SAMPLER": "always_off"}, Sampler(0.0, False)),
            ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, Sampler(0.0, True)),
            ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"}, Sampler(0.1, True)),
            ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}, Sampler(0.25, False)),
        ],
    )
    def test_name_a_sampler(self, environ, sampler):
        assert OtelEnvironment.from_env(environ).sampler == sampler

    def test_a_queue_and_a_batch_hold_at_least_one_span(self):
        found = OtelEnvironment.from_env({"OTEL_BSP_MAX_QUEUE_SIZE": "0.5", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "0.1"})
        assert (found.span_queue, found.span_batch) == (1, 1)

    def test_ask_for_exponential_histograms(self):
        name = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"
        assert not OtelEnvironment.from_env({}).exponential
        assert not OtelEnvironment.from_env({name: "explicit_bucket_histogram"}).exponential
        assert OtelEnvironment.from_env({name: "BASE2_EXPONENTIAL_BUCKET_HISTOGRAM"}).exponential
        assert "is neither" in OtelEnvironment.from_env({name: "linear"}).problems[0]

    @pytest.mark.parametrize(
        "environ",
        [
            {"OTEL_METRIC_EXPORT_INTERVAL": "soon"},
            {"OTEL_METRIC_EXPORT_TIMEOUT": "-1"},
            {"OTEL_TRACES_SAMPLER": "jaeger_remote"},
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"},
            {"OTEL_METRICS_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "carrier-pigeon"},
        ],
        ids=str,
    )
    def test_that_cannot_be_used_are_said_and_their_default_taken(self, environ):
        found = OtelEnvironment.from_env(environ)
        (problem,) = found.problems
        assert next(iter(environ.values())) in problem or "OTEL_" in problem
        assert (found.metric_interval, found.metric_timeout, found.sampler.root) == (60.0, 30.0, 1.0)
