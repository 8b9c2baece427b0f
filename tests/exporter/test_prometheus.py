"""What a scraper gets."""

import platform
import shutil
import subprocess

import numpy as np
import nvml_answers
import pytest
import records
from groups import full_group
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from lightllm_otel import __version__
from lightllm_otel.exporter.hardware import Hardware
from lightllm_otel.exporter.link import link
from lightllm_otel.exporter.metrics import COUNTER, HISTOGRAM, INFO, METRICS
from lightllm_otel.exporter.nvml import Nvml
from lightllm_otel.exporter.prometheus import GroupCollector
from lightllm_otel.records import layout
from lightllm_otel.records.vocabulary import UNATTRIBUTED, ExporterStage, Mode, Operator, Phase, SpanDrop, Stage
from lightllm_otel.reduce.group import Group
from lightllm_otel.reduce.histogram import Exemplar


def registry_of(group, lost=0):
    registry = CollectorRegistry(auto_describe=False)
    machine, hardware = nvml_answers.h200(8), Hardware(now=lambda: 0.0)
    for gpu in machine.gpus:
        gpu.state.update(nvml_answers.BUSY)
    hardware.poll(Nvml(machine), {rank: machine.bus(rank) for rank in range(8)}, 0.0)
    collector = GroupCollector(group, hardware, now=lambda: 100.0)
    collector.link = link(machine.facts(), Nvml(machine))
    collector.otlp_sender.dropped[SpanDrop.QUEUE] = lost
    registry.register(collector)
    return registry


@pytest.fixture
def registry():
    return registry_of(full_group())


@pytest.fixture
def registries(registry):
    """Of a group on one host, and of one that spans hosts and has lost a span."""
    return registry, registry_of(full_group(nodes=2), lost=1)


def samples(families):
    return [sample for family in families for sample in family.samples]


def test_a_dense_model_has_at_most_two_thousand_series(registry):
    series = samples(text_string_to_metric_families(generate_latest(registry).decode()))
    assert any(sample.labels.get("operator") == UNATTRIBUTED for sample in series)
    dense = [sample for sample in series if not sample.labels.get("operator", "").startswith("moe_")]
    assert 1900 < len(dense) <= 2000


def test_a_mixture_of_experts_with_a_further_kind_of_steps_has_at_most_three_thousand():
    """Drafts, or steps that mix prefill and decode, bring every operator once more."""
    group = full_group()
    mixed = records.step(Phase.MIXED, Mode.EAGER, 0.01, [(operator, 1e-4, layout.STARVED) for operator in Operator])
    for rank in range(8):
        group.add(rank, records.batch(mixed))
    series = samples(text_string_to_metric_families(generate_latest(registry_of(group)).decode()))
    assert 2700 < len(series) <= 3000


def test_both_formats_say_the_same(registry):
    plain = samples(text_string_to_metric_families(generate_latest(registry).decode()))
    openmetrics = samples(parse_openmetrics(generate_openmetrics(registry).decode()))
    key = lambda sample: (sample.name, *sorted(sample.labels.items()))  # noqa: E731
    assert {key(s): s.value for s in plain} == {key(s): s.value for s in openmetrics}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_every_metric_of_the_table_is_there_with_its_labels_and_help(registries, metric):
    names = {COUNTER: metric.name, HISTOGRAM: metric.name + "_count", INFO: metric.name}
    text = generate_latest(registries["_local_" in metric.name or "spans_" in metric.name]).decode()
    found = [s for s in samples(text_string_to_metric_families(text)) if s.name == names.get(metric.kind, metric.name)]
    assert found
    assert {*found[0].labels} == {*metric.labels}
    assert f"# HELP {metric.name}" in text or f"# HELP {metric.name.removesuffix('_total')}" in text


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_prometheus(metric):
    assert metric.name.startswith("lightllm_")
    assert metric.name.endswith("_total") == (metric.kind == COUNTER)
    assert metric.name.endswith("_info") == (metric.kind == INFO)
    assert not metric.name.startswith(("lightllm_request_", "lightllm_batch_", "lightllm_cache_", "lightllm_queue_"))
    assert ":" not in metric.name


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_help_is_one_plain_sentence(metric):
    assert metric.help.endswith(".")
    assert metric.help[0].isupper() or metric.help[0].isdigit()
    assert not metric.help.startswith(("Of ", "What ", "Whether ", "Which ", "How ", "The same"))
    assert ". " not in metric.help
    assert ";" not in metric.help
    assert len(metric.help.split()) <= 20
    assert metric.detail == "" or metric.detail.endswith(".")


@pytest.mark.parametrize("metric", [metric for metric in METRICS if metric.kind == HISTOGRAM], ids=lambda m: m.name)
def test_one_metric_has_one_layout_of_buckets(registry, metric):
    """So that ``sum by (le)`` over phases, servers or anything else is a histogram again."""
    layouts = {}
    for sample in samples(text_string_to_metric_families(generate_latest(registry).decode())):
        if sample.name == f"{metric.name}_bucket":
            labels = {**sample.labels}
            le = labels.pop("le")
            layouts.setdefault(tuple(sorted(labels.items())), []).append(le)
    assert len(layouts) > 1
    assert {tuple(each) for each in layouts.values()} == {(*(f"{bound:.7g}" for bound in metric.bounds), "+Inf")}


def test_state_that_changes_is_not_part_of_the_identity_of_a_server(registry):
    labels = {metric.name: set(metric.labels) for metric in METRICS if metric.kind == INFO}
    assert not labels["lightllm_server_info"] & labels["lightllm_otel_state_info"]
    assert registry.get_sample_value("lightllm_otel_start_time_seconds") == 100.0
    text = generate_latest(registry).decode()
    assert f'lightllm_otel_build_info{{python="{platform.python_version()}",version="{__version__}"}} 1.0' in text


def test_steps_of_earlier_lives_of_a_rank_still_count():
    group = Group()
    header = np.zeros(1, layout.HEADER)
    header["in_flight_number"] = 7
    group.ranks[0].header = header[0]
    group.restarted(0)
    header["in_flight_number"] = 3
    group.ranks[0].header = header[0]
    registry = CollectorRegistry(auto_describe=False)
    registry.register(GroupCollector(group))
    assert registry.get_sample_value("lightllm_gpu_steps_total", {"rank": "0"}) == 10


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool (Debian's prometheus package) is not installed")
def test_promtool_has_no_complaint(registry):
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=generate_latest(registry), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


def test_an_exemplar_is_in_openmetrics_beside_its_bucket_and_nowhere_else():
    group = full_group(ranks=1)
    (histogram,) = [h for (phase, mode), h in group.steps.histograms.items() if (phase, mode) == (1, 1)]
    histogram.show(Exemplar(0.01, 1e9, 0xABC, 0xDEF))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(GroupCollector(group))
    found = [s for s in samples(parse_openmetrics(generate_openmetrics(registry).decode())) if s.exemplar]
    (sample,) = found
    assert (sample.labels["le"], sample.labels["phase"], sample.labels["mode"]) == ("0.015625", "decode", "graph")
    assert sample.exemplar.labels == {"trace_id": f"{0xABC:032x}", "span_id": f"{0xDEF:016x}"}
    assert (sample.exemplar.value, float(sample.exemplar.timestamp)) == (0.01, 1e9)
    assert b"trace_id" not in generate_latest(registry)


def test_an_empty_group_can_be_scraped():
    registry = CollectorRegistry(auto_describe=False)
    registry.register(GroupCollector(Group()))
    assert b"lightllm_otel_data_age_seconds 0.0" in generate_latest(registry)


def test_a_step_in_flight_shows_for_how_long():
    group = Group()
    header = np.zeros(1, layout.HEADER)
    header["in_flight"], header["in_flight_since"], header["in_flight_number"] = 1, 40.0, 7
    group.ranks[0].header = header[0]
    registry = CollectorRegistry(auto_describe=False)
    registry.register(GroupCollector(group, now=lambda: 100.0))
    assert registry.get_sample_value("lightllm_gpu_step_in_flight_seconds", {"rank": "0"}) == 60.0
    assert registry.get_sample_value("lightllm_gpu_steps_total", {"rank": "0"}) == 7


def test_a_feature_that_this_lightllm_lacks_something_for_reads_0():
    group = full_group()
    lost = {"decode_graphs": ["operators inside decode graphs are not timed"]}
    for rank in group.ranks.values():
        rank.facts = {**rank.facts, "contracts": {"rows": {}, "lost": lost}}
    text = generate_latest(registry_of(group)).decode()
    assert 'lightllm_otel_feature_available{feature="decode_graphs"} 0.0' in text
    assert 'lightllm_otel_feature_available{feature="steps"} 1.0' in text


def test_stages_of_the_exporter_are_shown_when_they_have_failed_and_those_of_the_model_processes_always(lenient):
    group = full_group(ranks=1)
    with group.parts(ExporterStage.POSITIONS):
        raise OSError(28, "No space left on device")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(GroupCollector(group))
    found = samples(text_string_to_metric_families(generate_latest(registry).decode()))
    stages = {sample.labels["stage"]: sample.value for sample in found if "stage" in sample.labels}
    assert stages == {**{stage.value: 0.0 for stage in Stage}, "positions": 1.0}


def test_time_without_samples_is_a_value_of_the_label_operator(registry):
    text = generate_latest(registry).decode()
    assert 'lightllm_gpu_operator_estimated_seconds_total{operator="unattributed",phase="prefill"} 0.16' in text
