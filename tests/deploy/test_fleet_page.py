"""docs/fleet.md: its arithmetic is that of what there is."""

import importlib.util
import re

import pytest
from dashboards import ROOT
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

PAGE = (ROOT / "docs" / "fleet.md").read_text()


@pytest.fixture(scope="module")
def full():
    """The tests of the exporter, which know what a server is in which everything occurs."""
    spec = importlib.util.spec_from_file_location("exporter_tests", ROOT / "tests" / "exporter" / "test_prometheus.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(columns):
    """Lines of tables with so many numbers."""
    found = [re.findall(r"[\d.]+", line) for line in PAGE.splitlines() if re.match(r"\| \d", line)]
    return [[float(cell) for cell in line] for line in found if len(line) == columns]


def counted(full, ranks):
    """(all, with a rank); the machine behind the fixture has eight GPUs."""
    text = generate_latest(full.registry_of(full.full_group(ranks))).decode()
    samples = full.samples(text_string_to_metric_families(text))
    own = [sample for sample in samples if int(sample.labels.get("rank", 0)) < ranks]
    return len(own), sum("rank" in sample.labels for sample in own)


def test_series_of_a_server_are_as_counted(full):
    table = rows(3)
    assert [line[0] for line in table] == [2, 4, 8]
    assert [(line[1], line[2]) for line in table] == [counted(full, int(line[0])) for line in table]


def test_they_follow_the_formula(full):
    fixed, each = (
        int(number.replace(",", "")) for number in re.search(r"At most ([\d,]+) and (\d+) more", PAGE).groups()
    )
    assert all(line[1] == fixed + each * line[0] for line in rows(3))


def test_a_fleet_is_that_many_times_as_much():
    one = rows(3)[-1][1]
    assert [line[0] for line in rows(4)] == [10, 100, 1000]
    for servers, series, samples, gigabytes in rows(4):
        assert series == servers * one
        assert samples == round(series / 15)
        assert gigabytes == round(series / 15 * 86400 * 2 / 1e9, 2)
