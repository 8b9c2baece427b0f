"""One bad target costs its own alerts only: a fleet with every fault there is, beside servers that go wrong in each way."""

import dataclasses
import re

import pytest
import servers
import table
from servers import COMPARED, JOB, LATE, PERIOD, SLOW, Server, Target, scraped

MINUTES = 96
WRONG = 80  # when the victims go wrong
STUCK = 84  # when a step of theirs gets stuck: the alert that nobody may miss
LOOKED = (79, 82, 88, 95)  # before, after the windows of two minutes, within those of ten, after them
EVERY = 60  # seconds between two evaluations: half as often as a server does, for the sake of the test's time
SITE = '{site="ffn",phase="decode"}'


def pod(namespace, name):
    return {"cluster": "b", "namespace": namespace, "instance": f"{name}:9464"}


def other_servers():
    """Three hosts in one cluster; in another one pods of equal names in two namespaces, on nodes that are called like the
    hosts. Between them they have every fault.
    """
    metal = {"cluster": "a"}
    return [
        Server("node-1", labels=metal,
               gauges={'lightllm_gpu_step_in_flight_seconds{rank="0"}': 21, "lightllm_otel_distortion_ratio": 1.2,
                       'lightllm_otel_slot_installed{operator="ffn"}': 0},
               changed={'lightllm_otel_records_dropped_total{reason="overwritten"}': 5}),
        Server("node-2", labels=metal,
               changed={**SLOW, 'lightllm_gpu_collective_transfer_seconds_sum{site="ffn",phase="prefill"}': 0.05}),
        Server("node-3", labels=metal, changed={COMPARED("ffn"): 0.9, PERIOD: 70}),
        Server("node-1", labels=pod("blue", "lightllm-0"), changed=LATE,
               gauges={f"lightllm_gpu_collective_tail_ratio{SITE}": 4}),
        Server("node-1", labels=pod("green", "lightllm-0"), changed={"lightllm_otel_steps_sampled_total": 0}),
        Server("node-2", labels=pod("blue", "lightllm-1"),
               changed={f"lightllm_gpu_collective_transfer_seconds_sum{SITE}": 0.09}),
        Server("node-3", labels=pod("green", "lightllm-2"),
               changed={'lightllm_gpu_operator_memory_bytes_total{operator="ffn",phase="decode"}': 6e13}),
        Server("node-4", labels=pod("blue", "lightllm-3"), targets=[Target(0, 60)]),
        Server("node-5", labels=pod("blue", "lightllm-4")),
    ]  # fmt: skip


EXPECTED = {
    "LightLLMStepStuck": "a//node-1", "LightLLMPluginDistorts": "a//node-1", "LightLLMPluginSlotMissing": "a//node-1",
    "LightLLMPluginDrops": "a//node-1", "LightLLMAllReduceSlower": "a//node-2",
    "LightLLMAllReduceAboveExpectation": "a//node-2", "LightLLMLinkSlow": "a//node-2",
    "LightLLMDecodeSlow": "a//node-3", "LightLLMOperatorShareShifted": "a//node-3", "LightLLMRankLate": "b/blue/node-1",
    "LightLLMAllReduceUnstable": "b/blue/node-1", "LightLLMPluginNotSampling": "b/green/node-1",
    "LightLLMAllReduceSlowerThanPeers": "b/blue/node-2", "LightLLMServerSlowerThanPeers": "b/green/node-3",
    "LightLLMPluginNoData": "b/blue/node-4",
}  # fmt: skip


def up(server):
    """Prometheus' own word about each target; it still knows the one that is gone."""
    for target in server.lives():
        labels = {"job": JOB, "instance": f"{server.name}:9464", **server.labels, **target.labels}
        before = f"_x{2 * target.begin} " if target.begin else ""
        gone = f" 0x{2 * (MINUTES - target.end)}" if server.name == "node-4" else ""
        yield scraped("up", {}, labels), f"{before}1x{2 * (target.end - target.begin) - 1}{gone}"


def series_of(fleet):
    for server in fleet:
        server.minutes = MINUTES
        yield from server.series()
        yield from up(server)


ADDRESS = {"cluster": "a", "instance": "node-3:9465"}
WHOLE, BEFORE, AFTER = Target(0, MINUTES), Target(0, WRONG), Target(WRONG, MINUTES)


def victim(*targets, name="victim", **labels):
    stuck = {'lightllm_gpu_step_in_flight_seconds{rank="1"}': 21}
    return Server(name, labels={**ADDRESS, **labels}, targets=list(targets), at=STUCK, gauges=stuck, minutes=MINUTES)


def with_labels(target, info=None, stale=True, **labels):
    return dataclasses.replace(target, labels=labels, info=info or {}, stale=stale)


def interleaved():
    """Of two exporters whose targets have all labels in common, Prometheus keeps one series with samples of both in turns."""
    for name, values in series_of([victim(WHOLE)]):
        if re.match(r"\w+_(total|sum|count){", name):
            both = [f"{float(value) + 1e6 * (at % 2):g}" for at, value in enumerate(values.split(" "))]
            yield name, " ".join(both)
        else:
            yield name, values


INTERLEAVED = "two exporters in one series"
QWEN = {"model": "qwen"}
WAYS = {
    "two discovery files for one address": [victim(WHOLE, with_labels(AFTER, lightllm_group="127.0.0.1-28766-dp0"))],
    "two stale files of other models for one address": [
        victim(WHOLE, with_labels(AFTER, model="old"), with_labels(AFTER, model="older", lightllm_group="x"))
    ],
    "another server at the same address": [
        victim(WHOLE), victim(with_labels(AFTER, {"model": "qwen", "tp": "4", "gpu": "H100"}, agent="2"), name="victim-2"),
    ],
    "another server of the same model at the same address": [
        victim(WHOLE), victim(with_labels(AFTER, agent="2"), name="victim-2"),
    ],
    "restarted with another model": [victim(BEFORE, with_labels(AFTER, QWEN))],
    "restarted with another model, which the target's labels say": [
        victim(with_labels(BEFORE, model="llama"), with_labels(AFTER, QWEN, model="qwen"))
    ],
    "restarted with another model, and the old series are not marked stale": [
        victim(with_labels(BEFORE, model="llama", stale=False), with_labels(AFTER, QWEN, model="qwen"))
    ],
    "a renamed model": [victim(BEFORE, with_labels(AFTER, {"model": "llama-2"}))],
    "a renamed server": [victim(with_labels(BEFORE, server="victim"), with_labels(AFTER, server="victim-2"))],
    "other GPUs and another tp": [victim(BEFORE, with_labels(AFTER, {"gpu": "H100", "tp": "4"}))],
    "a target's label that changes with each version": [
        victim(with_labels(BEFORE, version="1"), with_labels(AFTER, version="2"))
    ],
    "a pod of the same name in another namespace": [victim(WHOLE), victim(AFTER, namespace="other")],
    "a host of the same name in another cluster": [victim(WHOLE), victim(AFTER, cluster="c")],
    INTERLEAVED: None,
}  # fmt: skip
DUPLICATES = {way for way in WAYS if way.endswith("address")}
CHANGED = {way for way in WAYS if way.startswith(("restarted", "a renamed", "other GPUs"))}


def victims():
    """Series of all ways at once, each victim at an address of its own."""
    for number, fleet in enumerate(WAYS.values()):
        for name, values in interleaved() if fleet is None else series_of(fleet):
            named = re.sub(r'"(?:GPU-)?victim', rf"\g<0>-{number}", name)
            yield named.replace("node-3:9465", f"node-3:{9500 + number}"), values


def promtool_says(tool, folder, fleet):
    """Return what fires at each time that is looked at; the text has the descriptions of all alerts at the last one."""
    lines = ["  alert_rule_test:"]
    for name in dict.fromkeys(alert.name for alert in table.ALERTS):
        lines += [f"  - eval_time: {LOOKED[-1]}m", f"    alertname: {name}"]
    return servers.alerts(tool, folder, fleet, LOOKED, EVERY, lines)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """(promtool, whether there are victims) → what it says, asked once."""
    known = {}

    def of(tool, wrong):
        if (tool, wrong) not in known:
            fleet = [*series_of(other_servers()), *(victims() if wrong else series_of([victim(WHOLE, name="node-6")]))]
            known[tool, wrong] = promtool_says(tool, tmp_path_factory.mktemp("fleet"), fleet)
        return known[tool, wrong]

    return of


def who(labels):
    return "/".join(labels.get(each, "") for each in ("cluster", "namespace", "server"))


def of_others(fired):
    """All labels of all alerts of everybody else, in an order."""
    return [
        sorted(sorted(labels.items()) for labels in at if not labels.get("server", "").startswith(("victim", "node-6")))
        for at in fired.alerts
    ]


def test_every_alert_fires_on_the_server_that_has_its_fault_and_on_no_other(promtool, answers):
    of_a_server = {alert.name for alert in table.ALERTS if alert.of_server}
    assert {*EXPECTED} == of_a_server - {"LightLLMPluginDuplicateTarget"}
    for at in of_others(answers(promtool, wrong=False)):
        assert {(dict(labels)["alertname"], who(dict(labels))) for labels in at} == {*EXPECTED.items()}


def test_the_alerts_of_all_others_are_those_of_a_healthy_fleet(promtool, answers):
    """promtool fails, and says of whom, where a rule cannot be evaluated."""
    assert of_others(answers(promtool, wrong=True)) == of_others(answers(promtool, wrong=False))


@pytest.mark.parametrize("way", WAYS)
def test_a_bad_target_still_has_its_own_alerts_and_one_that_says_what_is_wrong(promtool, answers, way):
    name = f"victim-{[*WAYS].index(way)}"
    fired = answers(promtool, wrong=True).alerts
    own = [{labels["alertname"] for labels in at if re.fullmatch(f"{name}(-2)?", labels["server"])} for at in fired]
    assert way == INTERLEAVED or own[0] == set()
    assert "LightLLMStepStuck" in own[2]
    if way == INTERLEAVED:
        return  # nothing can be read from it
    says = {"LightLLMPluginDuplicateTarget"} if way in DUPLICATES else set()
    says |= {"LightLLMPluginNoData"} if way in CHANGED else set()  # for half an hour: who had that name gives no data
    assert own[3] == {"LightLLMStepStuck"} | says


DESCRIBED = (
    r"node-1 \(a, llama, H200, TP 2\): one step has been on the GPU for 21s\. The rank that is furthest behind is 0, "
    r"at step \d{6}\.  GPU 0: GPU-node-1-0 1: GPU-node-1-1\.",
    r"node-1 \(b, blue, llama, H200, TP 2\): the others wait for rank 1",
    r"victim-0 \(a, llama, H200, TP 2\): 2 targets have the same job and instance: 2 of victim-0 \(llama\) at node-3:9500;",
    r"1 of victim-3 \(llama\) at node-3:9503; 1 of victim-3-2 \(llama\) at node-3:9503; they are read as one server\.",
)


def test_descriptions_ask_only_what_can_be_answered_for_every_server(promtool, answers):
    text = answers(promtool, wrong=True).text
    assert "error expanding template" not in text
    for said in DESCRIBED:
        assert re.search(said, text), said
