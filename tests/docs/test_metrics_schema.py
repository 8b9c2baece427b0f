"""docs/metrics-schema.json is the table of metrics: a change of a name, label or bucket is never an accident."""

import json

import metrics_schema
import numpy as np

from lightllm_otel.exporter.metrics import HISTOGRAM, METRICS
from lightllm_otel.reduce.histogram import Histogram

RECORDED = json.loads(metrics_schema.PATH.read_text())


def test_the_table_is_as_recorded():
    """If the change is meant, follow "Changes to metrics" in docs/metrics.md, then run ``python docs/metrics_schema.py``."""
    assert {metric.name: metrics_schema.row(metric) for metric in METRICS} == RECORDED
    assert metrics_schema.PATH.read_text() == metrics_schema.text()


def test_bounds_are_recorded_as_the_labels_of_a_scrape():
    histograms = [metric for metric in METRICS if metric.kind == HISTOGRAM]
    assert {name for name, row in RECORDED.items() if "le" in row} == {metric.name for metric in histograms}
    for metric in histograms:
        shown = [le for le, _ in Histogram(np.array(metric.bounds)).cumulative()]
        assert [*RECORDED[metric.name]["le"], "+Inf"] == shown
