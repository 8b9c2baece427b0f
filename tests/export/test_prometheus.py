"""What a scraper gets."""

import shutil
import subprocess
from collections import Counter

import numpy as np
import nvml_answers
import pytest
import records
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from lightllm_otel.aggregate.group import Group
from lightllm_otel.export.hardware import Hardware
from lightllm_otel.export.link import link
from lightllm_otel.export.metrics import COUNTER, HISTOGRAM, INFO, METRICS
from lightllm_otel.export.nvml import Nvml
from lightllm_otel.export.prometheus import GroupCollector
from lightllm_otel.ring import layout
from lightllm_otel.vocabulary import COLLECTIVES, IdleReason, Implementation, Mode, Operator, Phase, Site

COMBINATIONS = ((Phase.PREFILL, Mode.EAGER), (Phase.DECODE, Mode.EAGER), (Phase.DECODE, Mode.GRAPH))


# With LightLLM's tensor-parallel prefill of sequence parts (tpsp) there are the most: each site's, by two libraries.
CALLS = (
    (0, Site.EMBEDDING), (1, Site.ATTENTION), (2, Site.ATTENTION), (1, Site.FFN), (2, Site.FFN), (1, Site.LM_HEAD),
)  # fmt: skip


def all_calls(ranks, rank):
    """Each collective by each library, so often that its stability is known; the last rank comes last."""
    intervals = np.zeros(2 * 16 * len(CALLS), layout.INTERVAL)
    for at, (operator, site) in enumerate(CALLS * 32):
        intervals[at]["operator"], intervals[at]["site"] = COLLECTIVES[operator].code, site.code
        intervals[at]["implementation"] = (Implementation.NCCL, Implementation.CUSTOM)[at // len(CALLS) % 2].code
    intervals["seconds"], intervals["payload_bytes"] = 1e-4 if rank == ranks - 1 else 2e-4, 1 << 20
    return intervals


def full_group(ranks=8, nodes=1):
    """Everything that can occur, on every rank. With ``nodes`` > 1 of that many hosts, this is one."""
    group = Group()
    for rank in range(ranks):
        group.know(rank, {**records.FACTS, "tp": ranks * nodes, "nodes": nodes, "gpu_uuid": f"GPU-{rank}"})
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
        matched = [
            records.with_collectives(number, all_calls(ranks, rank), phase, mode)
            for number, (phase, mode) in enumerate((COMBINATIONS[0], COMBINATIONS[2]), start=1)
        ]
        group.consume(rank, records.cells(*matched))
        header = np.zeros(1, layout.HEADER)[0]
        header["stamp_quantum"], header["stamp_cost"] = 32e-9, 0.3e-6
        group.ranks[rank].header = header
    group.settle()
    for operator in set(Operator) - {Operator.GAP}:
        for phase in (Phase.PREFILL, Phase.DECODE):
            key = (operator.code, phase.code)
            group.expectation.compared[key], group.expectation.expected[key] = 1.05, 1.0
    return group


def registry_of(group):
    registry = CollectorRegistry(auto_describe=False)
    machine, hardware = nvml_answers.h200(8), Hardware()
    for gpu in machine.gpus:
        gpu.state.update(nvml_answers.BUSY)
    hardware.poll(Nvml(machine), {rank: machine.bus(rank) for rank in range(8)}, 0.0)
    collector = GroupCollector(group, hardware, now=lambda: 100.0)
    collector.link = link(machine.facts(), Nvml(machine))
    registry.register(collector)
    return registry


@pytest.fixture
def registry():
    return registry_of(full_group())


@pytest.fixture
def registries(registry):
    """Of a group on one host, and of one that spans hosts."""
    return registry, registry_of(full_group(nodes=2))


def samples(families):
    return [sample for family in families for sample in family.samples]


def test_a_server_with_twenty_operators_has_at_most_two_thousand_series(registry):
    series = samples(text_string_to_metric_families(generate_latest(registry).decode()))
    each = Counter(sample.labels["operator"] for sample in series if "operator" in sample.labels)
    another = (20 - len(Operator)) * max(each[operator.value] for operator in set(Operator) - set(COLLECTIVES))
    assert 1500 < len(series) + another <= 2000


def test_both_formats_say_the_same(registry):
    plain = samples(text_string_to_metric_families(generate_latest(registry).decode()))
    openmetrics = samples(parse_openmetrics(generate_openmetrics(registry).decode()))
    key = lambda sample: (sample.name, *sorted(sample.labels.items()))  # noqa: E731
    assert {key(s): s.value for s in plain} == {key(s): s.value for s in openmetrics}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_every_metric_of_the_table_is_there_with_its_labels_and_help(registries, metric):
    names = {COUNTER: metric.name, HISTOGRAM: metric.name + "_count", INFO: metric.name}
    text = generate_latest(registries["_local_" in metric.name]).decode()
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
