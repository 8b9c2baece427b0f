"""The pictures' numbers are Prometheus' answers."""

import importlib.util

import pytest
from dashboards import PATHS, ROOT, load


@pytest.fixture(scope="module")
def render():
    spec = importlib.util.spec_from_file_location("render", ROOT / "grafana" / "render" / "render.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def asked(render, answer):
    """With ``answer`` in the place of a Prometheus: (route, words) → results."""

    class Stub(render.Asked):
        def _get(self, what, **words):
            return (
                [{"metric": {"instance": "a:1"}}] if words["query"] == "lightllm_server_info" else answer(what, words)
            )

    return Stub("", 0, 100, one_server=True)


def test_a_heatmaps_buckets_are_counted_once(render):
    series = [
        {"name": "+Inf", "times": [0, 1], "values": [7, 9]},
        {"name": "0.5", "times": [0, 1], "values": [5, 9]},
        {"name": "0.25", "times": [1], "values": [4]},
    ]
    grid = render._grid(series)
    assert grid["names"] == ["0.25", "0.5", "+Inf"]
    assert grid["cells"] == [[0, 4], [5, 5], [2, 0]]


def test_a_table_has_a_row_for_what_the_queries_share_sorted_as_the_panel_says(render):
    def answer(what, words):
        by_model = "A" in words["query"]
        return [
            {"metric": {"instance": name, **({"model": "m"} if by_model else {})}, "value": [0, value]}
            for name, value in (("one", "1"), ("two", "2"))
        ]

    panel = {
        "type": "table", "options": {"sortBy": [{"displayName": "first"}]},
        "targets": [{"expr": "A", "legendFormat": "first"}, {"expr": "B", "legendFormat": "second"}],
    }  # fmt: skip
    table = asked(render, answer).panel(panel)
    assert table["columns"] == ["instance", "model", "first", "second"]
    assert table["rows"] == [["two", "m", 2.0, 2.0], ["one", "m", 1.0, 1.0]]


def test_a_scatter_plot_has_the_points_that_both_axes_can_show(render):
    def answer(what, words):
        values = {"X": ("2", "0", "3"), "Y": ("5", "6", "NaN")}[words["query"]]
        return [
            {"metric": {"operator": name, "phase": "decode"}, "value": [0, value]} for name, value in zip("abc", values)
        ]

    looks = {"pointColor": {"fixed": "blue"}, "pointSize": {"fixed": 10}}
    panel = {
        "type": "xychart", "options": {"series": [{"x": "across", "y": "up", **looks}]},
        "targets": [{"expr": "X", "legendFormat": "across"}, {"expr": "Y", "legendFormat": "up"}],
    }  # fmt: skip
    (series,) = asked(render, answer).panel(panel)
    assert (series["name"], series["colour"], series["size"]) == ("up", "blue", 10)
    assert series["points"] == [{"x": 2.0, "y": 5.0, "name": "a decode"}]


def test_no_variable_of_grafana_is_left_in_a_query(render):
    queries = []

    def answer(what, words):
        queries.append(words["query"])
        return []

    each = asked(render, answer)
    for path in PATHS:
        for panel in load(path)["panels"]:
            if panel["type"] != "row":
                each.panel(panel)
    assert queries
    assert [query for query in queries if "$" in query.replace('"$1"', "")] == []  # label_replace's own
