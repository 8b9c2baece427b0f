"""What the rules of Prometheus say about series that a person can follow: one fault at a time, and none."""

import functools
import re
import subprocess
from pathlib import Path

import build
import joins
import promtool as under_test
import pytest
import servers
import table
import yaml
from servers import COMPARED, LATE, PERIOD, SLOW, Server

from lightllm_otel.exporter.metrics import HISTOGRAM, METRICS

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "grafana" / "rules"
RUNBOOKS = ROOT / "docs" / "runbooks"


def fired(tool, tmp_path, fleet, minutes):
    """Alerts (name → labels) that fire at each of these minutes."""
    series = [each for server in fleet for each in server.series()]
    found = servers.alerts(tool, tmp_path, series, minutes)
    return [{labels["alertname"]: labels for labels in at} for at in found.alerts]


CASES = {
    "LightLLMStepStuck": ({}, {'lightllm_gpu_step_in_flight_seconds{rank="0"}': 21}, 1),
    "LightLLMAllReduceSlower": (SLOW, {}, 8),
    "LightLLMAllReduceAboveExpectation": (SLOW, {}, 100),
    "LightLLMDecodeSlow": ({COMPARED("ffn"): 0.9, PERIOD: 70}, {}, 20),
    "LightLLMRankLate": (LATE, {}, 15),
    "LightLLMAllReduceUnstable": ({}, {'lightllm_gpu_collective_tail_ratio{site="ffn",phase="decode"}': 4}, 20),
    "LightLLMLinkSlow": ({'lightllm_gpu_collective_transfer_seconds_sum{site="ffn",phase="prefill"}': 0.05}, {}, 60),
    "LightLLMOperatorShareShifted": ({COMPARED("ffn"): 1.2}, {}, 90),
    "LightLLMPluginNotSampling": ({"lightllm_otel_steps_sampled_total": 0}, {}, 40),
    "LightLLMPluginDrops": ({'lightllm_otel_records_dropped_total{reason="overwritten"}': 5}, {}, 40),
    "LightLLMPluginSlotMissing": ({}, {'lightllm_otel_slot_installed{operator="ffn"}': 0}, 20),
    "LightLLMPluginDistorts": ({}, {"lightllm_otel_distortion_ratio": 1.2}, 40),
}
BEGINS = 30  # minutes; without history the expectation is all there is
HISTORY = 210  # minutes after which there is a usual


@pytest.mark.parametrize("name", CASES)
def test_a_fault_fires_its_alert_and_its_absence_does_not(promtool, tmp_path, name):
    changed, gauges, after = CASES[name]
    server = Server(at=BEGINS, changed=changed, gauges=gauges, minutes=BEGINS + after + 1)
    before, then = fired(promtool, tmp_path, [server], [BEGINS - 1, BEGINS + after])
    assert before == {}
    assert name in then
    assert (then[name]["server"], then[name]["gpu"], then[name]["tp"]) == ("node-1", "H200", "2")
    assert "instance" not in then[name]


def test_what_is_usual_is_learned_from_the_day(promtool, tmp_path):
    """A server that has always been 20 % above its expectation is not slower than it was; 25 % on top are."""
    server = Server(at=HISTORY, minutes=HISTORY + 9, changed={COMPARED("all_reduce"): 0.3})
    server.base = lambda: {**Server.base(server), COMPARED("all_reduce"): 0.24}
    before, then = fired(promtool, tmp_path, [server], [HISTORY - 1, HISTORY + 8])
    assert "LightLLMAllReduceSlower" not in before
    assert "LightLLMAllReduceAboveExpectation" in before
    assert "LightLLMAllReduceSlower" in then


def test_a_late_rank_is_named(promtool, tmp_path):
    [then] = fired(promtool, tmp_path, [Server(at=BEGINS, changed=LATE, minutes=BEGINS + 16)], [BEGINS + 15])
    assert then["LightLLMRankLate"]["rank"] == "1"


@pytest.mark.parametrize(
    "changed", [{COMPARED("ffn"): 0.9}, {PERIOD: 70}], ids=["not felt", "not slower than expected"]
)
def test_nobody_is_woken_by_half_of_a_symptom(promtool, tmp_path, changed):
    [then] = fired(promtool, tmp_path, [Server(at=HISTORY, changed=changed, minutes=HISTORY + 31)], [HISTORY + 30])
    assert "LightLLMDecodeSlow" not in then


def test_more_load_is_no_slowdown(promtool, tmp_path):
    server = Server(at=BEGINS, minutes=BEGINS + 101)
    server.changed = {name: 3 * rate for name, rate in server.base().items()}
    assert fired(promtool, tmp_path, [server], [BEGINS + 10, BEGINS + 100]) == [{}, {}]


def test_a_deploy_with_new_pod_names_fires_nothing_and_hides_nothing(promtool, tmp_path):
    quiet = Server(deploy=60, minutes=90)
    slow = Server("node-2", deploy=60, at=65, changed=SLOW, minutes=90)
    [after, later] = fired(promtool, tmp_path, [quiet, slow], [63, 80])
    assert after == {}
    assert {labels["server"] for labels in later.values()} == {"node-2"}
    assert "LightLLMAllReduceSlower" in later


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        (
            {'lightllm_gpu_collective_transfer_seconds_sum{site="ffn",phase="decode"}': 0.09},
            "LightLLMAllReduceSlowerThanPeers",
        ),
        (
            {'lightllm_gpu_operator_memory_bytes_total{operator="ffn",phase="decode"}': 6e13},
            "LightLLMServerSlowerThanPeers",
        ),
    ],
    ids=["all_reduce", "decode"],
)
def test_a_server_worse_than_its_peers_is_found_without_history(promtool, tmp_path, changed, name):
    peers = [Server(f"node-{number}", minutes=30) for number in range(2)]
    alike, other = [
        fired(promtool, tmp_path, [*peers, Server("bad", minutes=30, changed={**changed, **load})], [25])[0]
        for load in ({}, {'lightllm_gpu_step_requests_total{phase="decode"}': 9000})
    ]
    assert alike[name]["server"] == "bad"
    assert name not in other, "at another load they are no peers"


def test_a_rank_whose_host_is_always_late_is_found_where_no_transfer_is_known(promtool, tmp_path):
    server = Server(minutes=60, at=30, changed=LATE)
    base = server.base()
    server.base = lambda: {name: value for name, value in base.items() if "collective_transfer" not in name}
    before, after = fired(promtool, tmp_path, [server], [25, 50])
    assert "LightLLMRankLate" not in before
    assert after["LightLLMRankLate"]["rank"] == "1"


def test_a_server_that_is_gone_is_missed(promtool, tmp_path):
    gone, stays = Server(minutes=60, deploy=0), Server("node-2", minutes=100)
    then = fired(promtool, tmp_path, [gone, stays], [80])[0]
    assert then["LightLLMPluginNoData"]["server"] == "node-1"


def test_a_server_whose_target_is_still_known_is_missed_until_it_is_back(promtool, tmp_path):
    gone, stays = Server(minutes=60), Server("node-2", minutes=200)
    series = list(gone.series())
    up = f'up{{job="{servers.JOB}",instance="node-1-0:9464"}}'
    gone.series = lambda: [*((name, f"{values} stale") for name, values in series), (up, "1x119 0x280")]
    early, later = fired(promtool, tmp_path, [gone, stays], [64, 180])
    assert "LightLLMPluginNoData" not in early
    assert later["LightLLMPluginNoData"]["server"] == "node-1"


def test_a_failure_before_the_first_scrape_is_a_ticket(promtool, tmp_path):
    server = Server(minutes=60)
    steady = server.steady()
    server.base = lambda: {k: v for k, v in Server.base(server).items() if "errors_total" not in k}
    server.steady = lambda: {**steady, 'lightllm_otel_errors_total{stage="patch"}': 1}
    then, later = fired(promtool, tmp_path, [server], [18, 55])
    assert "LightLLMPluginDrops" in then
    assert "LightLLMPluginDrops" not in later, "it is on record; nothing has failed since"


def lost(what, group, values):
    """Prometheus on itself: what it could not evaluate of a group of rules."""
    return f'prometheus_rule_{what}_total{{job="prometheus",rule_group="/etc/prometheus/rules/{group}"}}', values


@pytest.mark.parametrize("what", ["evaluation_failures", "group_iterations_missed"])
def test_rules_that_cannot_be_evaluated_are_a_ticket(promtool, tmp_path, what):
    """Others' rules are not, and neither is a single failure."""
    series = [
        lost(what, "recording.yml;lightllm-rates", "0x40 1+1x80"),
        lost(what, "recording.yml;lightllm-usual", "0x40 1x80"),
        lost(what, "node.yml;node-exporter", "0+1x120"),
    ]
    before, then = servers.alerts(promtool, tmp_path, series, [19, 40]).alerts
    assert before == []
    (alert,) = then
    assert alert == {
        "__name__": "ALERTS", "alertname": "LightLLMRulesFailing", "alertstate": "firing", "severity": "warning",
        "rule_group": "/etc/prometheus/rules/recording.yml;lightllm-rates",
    }  # fmt: skip


def test_a_server_that_is_scraped_twice_is_a_ticket(promtool, tmp_path):
    targets = [servers.Target(0, 30), servers.Target(10, 30, {"lightllm_group": "left over"})]
    before, then = fired(promtool, tmp_path, [Server(minutes=30, targets=targets)], [9, 25])
    assert before == {}
    assert set(then) == {"LightLLMPluginDuplicateTarget"}
    assert then["LightLLMPluginDuplicateTarget"]["server"] == "node-1"


def test_a_trickle_of_steps_may_have_none_sampled(promtool, tmp_path):
    few = {
        'lightllm_gpu_step_duration_seconds_count{phase="decode"}': 30,
        "lightllm_otel_steps_sampled_total": 0,
    }
    [then] = fired(promtool, tmp_path, [Server(minutes=60, changed=few)], [55])
    assert "LightLLMPluginNotSampling" not in then


def test_at_level_steps_nothing_should_be_sampled(promtool, tmp_path):
    none = {"lightllm_otel_steps_sampled_total": 0}
    [then] = fired(promtool, tmp_path, [Server(minutes=60, changed=none, level="steps")], [55])
    assert "LightLLMPluginNotSampling" not in then


def test_an_old_tail_without_traffic_is_no_ticket(promtool, tmp_path):
    server = Server(at=BEGINS, minutes=BEGINS + 41)
    server.changed = dict.fromkeys(server.base(), 0)
    server.gauges = {'lightllm_gpu_collective_tail_ratio{site="ffn",phase="decode"}': 4}
    [then] = fired(promtool, tmp_path, [server], [BEGINS + 40])
    assert then == {}


class TestRunbooks:
    """Where the links lead."""

    def test_pyproject_says_it(self):
        assert (
            build.place('[project.urls]\nRunbooks = "https://wiki/r/"\nRepository = "https://git/p"\n')
            == "https://wiki/r"
        )
        assert (
            build.place('[project.urls]\nRepository = "https://git/p"\n[tool.x]\n')
            == "https://git/p/blob/main/docs/runbooks"
        )
        assert build.place('[project]\nname = "x"\n[tool.x]\nRunbooks = "no"\n') == "docs/runbooks"

    def test_every_alert_has_it(self):
        made = yaml.safe_load(build.text("https://wiki/r/"))
        alerts = [rule for group in made["groups"] for rule in group["rules"]]
        assert {rule["annotations"]["runbook_url"] for rule in alerts} == {
            f"https://wiki/r/{alert.name}.md" for alert in table.ALERTS
        }

    def test_the_line_without_tools_finds_every_link(self):
        text = (RULES / "alerts.yml").read_text()
        assert text.count("runbook_url: ") == text.count(f"runbook_url: {build.place(build.PROJECT.read_text())}/")


DESCRIBED = (
    "node-1 (llama, H200, TP 2): the others wait for rank 1",
    "1: GPU-node-1-1.",
    "Since 1970-01-01 00:",
    "lightllm 0,",
    "lightllm 1,",
    "For users: the whole group",
    "First: clock",
    "docs/runbooks/LightLLMRankLate.md",
)


def test_the_description_names_server_rank_gpu_versions_effect_and_action(promtool, tmp_path):
    """promtool prints the annotations of an alert that it was told not to expect."""
    server = Server(at=BEGINS, changed=LATE, deploy=20, minutes=BEGINS + 16)
    path = tmp_path / "test.yml"
    expected = ["  alert_rule_test:", f"  - eval_time: {BEGINS + 15}m", "    alertname: LightLLMRankLate"]
    servers.write(path, server.series(), expected)
    text = servers.said(promtool, path)
    for part in DESCRIBED:
        assert part in text
    assert "GPU-node-1-0" not in text
    assert "error" not in text.lower().replace("link_errors", "")


@pytest.mark.parametrize("name", under_test.FILES)
def test_prometheus_accepts_the_files(promtool, name):
    answer = subprocess.run(
        [promtool, "check", "rules", str(RULES / name)], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr


def test_alerts_are_what_the_table_says():
    """Else run: python grafana/rules/build.py"""
    assert (RULES / "alerts.yml").read_text() == build.text()


def rules():
    files = [yaml.safe_load((RULES / name).read_text()) for name in under_test.FILES]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def test_every_group_is_evaluated_in_the_order_of_the_tests():
    files = [yaml.safe_load((RULES / name).read_text()) for name in under_test.FILES]
    assert tuple(group["name"] for file in files for group in file["groups"]) == under_test.GROUPS


def test_rules_use_metrics_that_exist():
    known = {rule["record"] for rule in rules() if "record" in rule}
    for metric in METRICS:
        known |= {f"{metric.name}_{end}" for end in ("sum", "count")} if metric.kind == HISTOGRAM else {metric.name}
    for rule in rules():
        used = set(
            re.findall(r"\blightllm[_:][\w:]+", rule["expr"] + rule.get("annotations", {}).get("description", ""))
        )
        assert {name for name in used if not name.startswith("lightllm_group")} <= known, rule


@functools.cache
def shapes():
    return joins.recorded([rule for rule in rules() if "record" in rule])


def test_no_alert_has_the_address_of_a_pod():
    for rule in rules():
        if "alert" in rule:
            labels = joins.shape(rule["expr"], shapes()).labels
            assert labels is not None, f"{rule['alert']}: any label that a target has"
            assert not labels & {"job", "instance", "pod"}


def test_no_join_depends_on_there_being_no_second_target():
    """Prometheus fails the whole rule, for all servers, where a second series matches."""
    found = {rule.get("record") or rule["alert"]: joins.risky(rule["expr"], shapes()) for rule in rules()}
    assert {name: text for name, text in found.items() if text} == {}
    for rule in rules():
        for labels in re.findall(
            r"\bon \(([^)]*)\)", rule["expr"] + rule.get("annotations", {}).get("description", "")
        ):
            assert "instance" not in labels or labels == table.TARGET, "hosts of two clusters, pods of two namespaces"


@pytest.mark.parametrize(
    "query",
    [
        "rate(a_total[1m]) * on (job, instance) group_left (model) max by (job, instance, model) (info)",
        "sum by (job, instance) (a) * on (job, instance) group_left (model) max by (job, instance, model) (info)",
        "rate(a_total[1m]) * on (job, instance) group_left (model) topk by (job, instance) (1, info)",
        "sum by (job) (a) / on (job) b",
        "a / ignoring (rank) group_left () b",
    ],
)
def test_a_join_that_does_is_found(query):
    assert joins.risky(query, {})


@pytest.mark.parametrize(
    "query",
    [
        "sum by (job, instance) (a) * on (job, instance) group_left (model) topk by (job, instance) (1, info)",
        "sum by (job, rank) (a) / ignoring (rank) group_left () sum by (job) (a)",
        "sum by (job) (a) / sum by (job) (b)",
        "a and on (job) b",
        "a / on () group_left count(b)",
    ],
)
def test_a_join_that_does_not_is_left_alone(query):
    assert joins.risky(query, {}) == []


@pytest.mark.parametrize("alert", table.ALERTS, ids=lambda alert: alert.name + alert.window)
class TestEveryAlert:
    def test_has_a_runbook(self, alert):
        text = (RUNBOOKS / f"{alert.name}.md").read_text()
        assert text.startswith(f"# {alert.name}\n")
        assert re.findall(r"^## (.*)", text, re.MULTILINE) == [
            "Meaning",
            "Effect on users",
            "What to do",
            "When it is wrong",
        ]

    def test_pages_only_for_a_symptom(self, alert):
        assert (alert.severity == table.CRITICAL) == (alert.name in ("LightLLMStepStuck", "LightLLMDecodeSlow"))

    def test_has_a_test_of_its_own(self, alert):
        assert alert.name in Path(__file__).read_text()


def test_no_runbook_is_left_over():
    assert {path.stem for path in RUNBOOKS.glob("*.md")} == {alert.name for alert in table.ALERTS}


def test_a_group_that_spans_hosts_has_the_transfer_of_the_host_that_waits_least(promtool, tmp_path):
    """Host a comes last and waits for nobody, host b waits for it; a group of its own has nothing to do with them."""
    lines = [
        "rule_files:",
        f"- {RULES / 'recording.yml'}",
        "evaluation_interval: 30s",
        "tests:",
        "- interval: 30s",
        "  input_series:",
    ]
    for host, group, microseconds in (("a", "one", 20), ("b", "one", 90), ("c", "other", 35), ("d", "", 5)):
        labels = (
            f'job="lightllm-otel",instance="{host}",lightllm_group="{group}",site="ffn",phase="decode",scope="node"'
        )
        for name, each in (("local_minimum_seconds", 1000 * microseconds * 1e-6), ("local_calls", 1000)):
            lines += [f"  - series: 'lightllm_gpu_collective_{name}_total{{{labels}}}'", f"    values: '0+{each:g}x60'"]
    lines += [
        "  promql_expr_test:",
        "  - expr: round(1e6 * lightllm:group_transfer_seconds:mean10m)",
        "    eval_time: 25m",
        "    exp_samples:",
    ]
    for group, microseconds in (("one", 20), ("other", 35)):
        labels = f'{{lightllm_group="{group}",site="ffn",phase="decode"}}'
        lines += [f"    - labels: '{labels}'", f"      value: {microseconds}"]
    path = tmp_path / "test.yml"
    path.write_text("\n".join(lines) + "\n")
    answer = subprocess.run([promtool, "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
