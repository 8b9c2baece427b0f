"""What Prometheus makes of estimated seconds, by the dashboards' own queries: when something changes, and without samples."""

import json
import subprocess

from dashboards import PATHS, VALUES, load, panels
from simulated_serving import SCRAPE_SECONDS, Serving

LABELS = 'job="lightllm-otel",instance="node-1:9464"'
ESTIMATED = "lightllm_gpu_operator_estimated_seconds_total"
DAY, MINUTE = 86_400.0, 60.0


def query(board, title, number=0):
    """A query of a dashboard, over five minutes."""
    (path,) = [path for path in PATHS if path.stem == f"lightllm-otel-{board}"]
    (panel,) = [panel for panel in panels(load(path)) if panel["title"] == title]
    text = panel["targets"][number]["expr"]
    for name, value in {**VALUES, "$__rate_interval": "5m"}.items():
        text = text.replace(name, value)
    return text


def asked(promtool, tmp_path, series, questions):
    """``questions``: (expression, minute, {labels: value}). What promtool says, and whether all is as it should be."""
    test = {
        "interval": f"{SCRAPE_SECONDS:.0f}s",
        "input_series": [
            {"series": f"{name}{{{labels},{LABELS}}}", "values": " ".join(f"{value:.9g}" for value in values)}
            for (name, labels), values in series.items()
        ],
        "promql_expr_test": [
            {"expr": expression, "eval_time": f"{minute * 60:.0f}s",
             "exp_samples": [{"labels": labels, "value": value} for labels, value in expected.items()]}
            for expression, minute, expected in questions
        ],
    }  # fmt: skip
    path = tmp_path / "test.yml"
    path.write_text(json.dumps({"rule_files": [], "tests": [test]}))  # JSON is YAML
    done = subprocess.run([promtool, "test", "rules", str(path)], capture_output=True, text=True, check=False)
    return done.returncode == 0, done.stdout + done.stderr


def test_where_decode_goes_shows_an_incident_within_five_minutes(promtool, tmp_path):
    server = Serving()
    server.run(DAY, all_reduce=0.1, step=15.0, poll=900.0)
    quiet = len(server.scrapes)
    server.run(10 * MINUTE, all_reduce=0.1)
    changed = len(server.scrapes) - quiet
    server.run(10 * MINUTE, all_reduce=0.5)
    seen = server.scrapes[quiet:]
    series = {
        (ESTIMATED, f'operator="{name}",phase="decode"'): [values[name] for _, values in seen]
        for name, last in seen[-1][1].items()
        if last
    }
    shares = f"round({query('overview', 'Where decode goes')}, 0.05) > 0"
    minute = changed * SCRAPE_SECONDS / 60
    quietly = {'{operator="all_reduce"}': 0.1, '{operator="ffn"}': 0.9}
    loudly = {'{operator="all_reduce"}': 0.5, '{operator="ffn"}': 0.5}
    questions = [(shares, minute - 1, quietly), (shares, minute + 5, loudly), (shares, minute + 8, loudly)]
    good, said = asked(promtool, tmp_path, series, questions)
    assert good, said


def test_work_by_time_is_the_same_whether_all_steps_have_samples_or_some(promtool, tmp_path):
    """Operations are counted in all steps, seconds of operators in those that a sample speaks for."""
    each = [15.0 * number for number in range(60)]
    series = {("lightllm_gpu_operator_flops_total", 'operator="ffn",phase="decode"'): [100 * value for value in each]}
    series |= {
        (ESTIMATED, f'operator="{name}",phase="decode"'): [share * value for value in each]
        for name, share in (("ffn", 0.25), ("gap", 0.25), ("unattributed", 0.5))
    }
    rate = f"round({query('roofline', 'What bounds each operator')})"
    point = f"round({query('roofline', 'Roofline', 2)})"
    labels = '{job="lightllm-otel",instance="node-1:9464",operator="ffn",phase="decode"}'
    good, said = asked(promtool, tmp_path, series, [(rate, 10, {labels: 200}), (point, 10, {labels: 200})])
    assert good, said


def test_work_by_time_is_not_shown_without_any_samples(promtool, tmp_path):
    each = [15.0 * number for number in range(60)]
    series = {
        ("lightllm_gpu_operator_flops_total", 'operator="ffn",phase="decode"'): [100 * value for value in each],
        (ESTIMATED, 'operator="ffn",phase="decode"'): [7.0] * len(each),
        (ESTIMATED, 'operator="unattributed",phase="decode"'): each,
    }
    good, said = asked(promtool, tmp_path, series, [(query("roofline", "What bounds each operator"), 10, {})])
    assert good, said
