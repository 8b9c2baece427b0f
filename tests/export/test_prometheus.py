"""What a scraper gets."""

import shutil
import subprocess

import numpy as np
import pytest
import records
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from lightllm_otel.aggregate.group import Group
from lightllm_otel.export.metrics import COUNTER, HISTOGRAM, INFO, METRICS
from lightllm_otel.export.prometheus import GroupCollector
from lightllm_otel.ring import layout
from lightllm_otel.vocabulary import IdleReason, Mode, Operator, Phase

COMBINATIONS = ((Phase.PREFILL, Mode.EAGER), (Phase.DECODE, Mode.EAGER), (Phase.DECODE, Mode.GRAPH))


def full_group(ranks=8):
    """Everything that can occur, on every rank."""
    group = Group()
    group.analytic.know({**records.FACTS, "tp": ranks})
    calls = [(operator, 1e-4, layout.STARVED) for operator in Operator]
    twin = records.step(Phase.DECODE, Mode.GRAPH, 0.011, calls)
    plain = records.step(Phase.DECODE, Mode.GRAPH, 0.010)
    for rank in range(ranks):
        group.consume(rank, records.cells(plain, twin, plain))
        steps = [
            records.step(phase, mode, 0.01, calls, idle_reason=reason, idle_seconds=0.1)
            for phase, mode in COMBINATIONS
            for reason in (IdleReason.HOST, IdleReason.NO_REQUESTS)
        ]
        group.consume(rank, records.cells(*steps))
        header = np.zeros(1, layout.HEADER)[0]
        header["stamp_quantum"], header["stamp_cost"] = 32e-9, 0.3e-6
        group.ranks[rank].header = header
        group.ranks[rank].facts = {**records.FACTS, "tp": ranks, "gpu_uuid": f"GPU-{rank}"}
    return group


@pytest.fixture
def registry():
    registry = CollectorRegistry(auto_describe=False)
    collector = GroupCollector(full_group(), now=lambda: 100.0)
    collector.link = "nvlink"
    registry.register(collector)
    return registry


def samples(families):
    return [sample for family in families for sample in family.samples]


def test_a_server_has_at_most_two_thousand_series(registry):
    series = samples(text_string_to_metric_families(generate_latest(registry).decode()))
    assert 1500 < len(series) <= 2000


def test_both_formats_say_the_same(registry):
    plain = samples(text_string_to_metric_families(generate_latest(registry).decode()))
    openmetrics = samples(parse_openmetrics(generate_openmetrics(registry).decode()))
    key = lambda sample: (sample.name, *sorted(sample.labels.items()))  # noqa: E731
    assert {key(s): s.value for s in plain} == {key(s): s.value for s in openmetrics}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_every_metric_of_the_table_is_there_with_its_labels_and_help(registry, metric):
    names = {COUNTER: metric.name, HISTOGRAM: metric.name + "_count", INFO: metric.name}
    text = generate_latest(registry).decode()
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
    assert metric.help.endswith(".")


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool (Debian's prometheus package) is not installed")
def test_promtool_has_no_complaint(registry):
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=generate_latest(registry), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


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
    assert registry.get_sample_value("lightllm_gpu_step_number", {"rank": "0"}) == 7
