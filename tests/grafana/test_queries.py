"""Every query parses, asks for what there is, and gets an answer with the labels that its legend shows."""

import re
import shutil
import subprocess

import joins
import promql_parser as promql
import pytest
from dashboards import ALL, PATHS, VALUES, load, substituted

from lightllm_otel.exporter.metrics import BY_NAME, COUNTER, HISTOGRAM, METRICS

# What our metrics carry beside their own labels, and what is not ours.
SCRAPED = {"job", "instance", "cluster", "namespace"}
FOREIGN = {
    "up": set(), "scrape_samples_scraped": set(),
    "DCGM_FI_PROF_NVLINK_TX_BYTES": {"UUID"}, "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": {"UUID"}, "lightllm_queue_size": set(),
    "lightllm_request_first_token_duration_bucket": {"le"}, "lightllm_request_mean_time_per_token_duration_bucket": {"le"},
}  # fmt: skip
NOT_SHOWN: dict[str, str] = {}
"""Metrics of ours that no dashboard uses, with the reason."""

each_target = pytest.mark.parametrize("target", ALL, ids=str)


def labels_of(name):
    """Labels of a series by its name; None for a series that does not exist."""
    if name in FOREIGN:
        return FOREIGN[name] | SCRAPED
    for suffix in ("_bucket", "_sum", "_count"):
        metric = BY_NAME.get(name.removesuffix(suffix))
        if name.endswith(suffix) and metric is not None and metric.kind == HISTOGRAM:
            return {*metric.labels} | SCRAPED | ({"le"} if suffix == "_bucket" else set())
    metric = BY_NAME.get(name)
    return {*metric.labels} | SCRAPED if metric is not None and metric.kind != HISTOGRAM else None


def inside(node):
    """The node and all below it."""
    yield node
    below = [getattr(node, name, None) for name in ("lhs", "rhs", "expr", "vector_selector", "param")]
    for child in (*below, *getattr(node, "args", ())):
        if child is not None:
            yield from inside(child)


def selectors(node):
    return [each for each in inside(node) if isinstance(each, promql.VectorSelector)]


def possible(node):
    """Labels that a series of the result can have."""
    if isinstance(node, promql.VectorSelector):
        return labels_of(node.name) or set()
    if isinstance(node, promql.AggregateExpr):
        below, modifier = possible(node.expr), node.modifier
        assert modifier is None or {*modifier.labels} <= below, f"{node}: no { ({*modifier.labels} - below) } there"
        if str(node.op) == "topk":
            return below
        return {*modifier.labels} if modifier is not None else set()
    if isinstance(node, promql.Call):
        sets = [possible(each) for each in node.args]
        made = {str(node.args[1]).strip('"')} if node.func.name == "label_replace" else set()
        gone = {"le"} if node.func.name == "histogram_quantile" else set()
        empty = node.func.name == "scalar"
        return set() if empty else set().union(*sets) - gone | made
    if isinstance(node, promql.BinaryExpr):
        left, right = possible(node.lhs), possible(node.rhs)
        if node.modifier is not None and node.modifier.matching is not None:
            assert {*node.modifier.matching.labels} <= left & right, f"{node} matches on labels that one side has not"
        if node.modifier is not None and node.modifier.group_labels is not None:
            return left | {*node.modifier.group_labels}
        return left or right
    for name in ("expr", "vector_selector"):
        if getattr(node, name, None) is not None:
            return possible(getattr(node, name))
    return set()


@each_target
class TestQuery:
    def test_it_parses_and_asks_only_for_series_and_labels_that_there_are(self, target):
        parsed = promql.parse(target.expr)
        for selector in selectors(parsed):
            known = labels_of(selector.name)
            assert known is not None, f"there is no {selector.name}"
            assert {matcher.name for matcher in selector.matchers.matchers} <= known

    def test_its_legend_shows_labels_that_the_result_has(self, target):
        assert target.legend <= possible(promql.parse(target.expr))

    def test_counters_are_shown_as_rates(self, target):
        """And what is not a counter never is one."""
        parsed = promql.parse(target.expr)
        rated = {
            selector.name
            for node in inside(parsed)
            if isinstance(node, promql.Call) and node.func.name in ("rate", "increase")
            for selector in selectors(node)
        }
        counts = {name for name in (s.name for s in selectors(parsed)) if is_counter(name)}
        assert counts == rated


@each_target
def test_no_join_depends_on_there_being_no_second_target(target):
    """Prometheus fails the whole query, for all servers, where a second series matches."""
    assert joins.risky(target.expr, {}) == []
    for labels in re.findall(r"\bon \(([^)]*)\)", target.expr):
        assert "instance" not in labels or labels.startswith("cluster, namespace, job, instance"), (
            "hosts of two clusters"
        )


UNATTRIBUTED = {
    "roofline: What bounds each operator A": {"ffn": 125},
    "roofline: What bounds each operator B": {"ffn": 0.125},
    "overview: Where decode goes A": {"ffn": 0.2, "gap": 0.05, "unattributed": 0.75},
    "operators: GPU time A": {"ffn": 0.2, "gap": 0.05, "unattributed": 0.75},
}


@pytest.mark.parametrize("name", UNATTRIBUTED)
def test_time_without_samples_is_shown_and_does_not_speed_operators_up(promtool, tmp_path, name):
    """Operations are those of all steps. A quarter of the time has samples, and ffn has four fifths of it: 0.8 s a second."""
    (target,) = [each for each in ALL if str(each) == name]
    at = 'job="j",instance="i",phase="decode"'
    seconds = {"ffn": 0.2, "gap": 0.05, "unattributed": 0.75}
    series = {
        f'lightllm_gpu_operator_estimated_seconds_total{{{at},operator="{each}"}}': seconds[each] for each in seconds
    }
    series[f'lightllm_gpu_operator_flops_total{{{at},operator="ffn"}}'] = 100
    lines = ["tests:", "- interval: 5s", "  input_series:"]
    for each, a_second in series.items():
        lines += [f"  - {{series: '{each}', values: '0+{5 * a_second}x20'}}"]
    lines += ["""  - {series: 'lightllm_gpu_peak_flops_per_second{job="j",instance="i"}', values: '1000x20'}"""]
    expr = f"sum by (operator) (round({target.expr}, 0.0001))"
    lines += ["  promql_expr_test:", f"  - expr: '{expr}'", "    eval_time: 1m", "    exp_samples:"]
    for operator, value in UNATTRIBUTED[name].items():
        lines += [f"    - {{labels: '{{operator=\"{operator}\"}}', value: {value}}}"]
    (tmp_path / "test.yml").write_text("\n".join(lines) + "\n")
    command = [promtool, "test", "rules", str(tmp_path / "test.yml")]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def is_counter(name):
    metric = BY_NAME.get(name)
    return (metric is not None and metric.kind == COUNTER) or name.endswith(("_bucket", "_sum", "_count"))


def test_every_metric_is_on_a_dashboard_or_has_a_reason_not_to_be():
    used = {selector.name for target in ALL for selector in selectors(promql.parse(target.expr))}
    shown = {name.removesuffix(suffix) for name in used for suffix in ("", "_bucket", "_sum", "_count")}
    assert {metric.name for metric in METRICS} - shown == set(NOT_SHOWN)


def test_variables_ask_for_labels_that_their_metrics_have():
    for path in PATHS:
        for variable in load(path)["templating"]["list"]:
            if variable["type"] == "query":
                inner, _, label = variable["query"].removeprefix("label_values(").removesuffix(")").rpartition(", ")
                (selector,) = selectors(promql.parse(substituted(inner)))
                assert label in labels_of(selector.name), variable["name"]
            if variable["name"] != "datasource":
                assert f"${variable['name']}" in VALUES


def test_promtool_reads_every_query(tmp_path):
    """As rules: Prometheus' own parser and type checker."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    rules = "groups:\n- name: dashboards\n  rules:\n"
    for number, target in enumerate(ALL):
        rules += f"  - record: query:{number}\n    expr: '{target.expr}'\n"
    path = tmp_path / "queries.yml"
    path.write_text(rules)
    done = subprocess.run([promtool, "check", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(ALL)} rules found" in done.stdout
