"""The example of Alertmanager: who hears of what."""

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
import table
import yaml

CONFIG = Path(__file__).resolve().parents[2] / "deploy" / "alertmanager.yml"


def test_alertmanager_accepts_it(amtool):
    answer = subprocess.run([amtool, "check-config", str(CONFIG)], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize("alert", table.ALERTS, ids=lambda alert: alert.name + alert.window)
def test_pages_go_to_the_pager_and_nothing_else_does(amtool, alert):
    labels = [f"alertname={alert.name}", f"severity={alert.severity}"]
    answer = subprocess.run(
        [amtool, "config", "routes", "test", f"--config.file={CONFIG}", *labels],
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.split() == (["pager"] if alert.severity == table.CRITICAL else ["tickets"])


def test_one_cause_is_one_page():
    content = yaml.safe_load(CONFIG.read_text())
    assert "server" not in content["route"]["group_by"], "a fault of all servers would be a page each"
    for rule in content["inhibit_rules"]:
        assert rule["equal"] == ["cluster", "namespace", "server", "model", "gpu", "tp"]


@pytest.fixture
def alertmanager(tmp_path):
    """The address of a real Alertmanager with the example's configuration."""
    program = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    if program is None:
        pytest.skip("Alertmanager is not installed (Debian: apt-get install prometheus-alertmanager)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [program, f"--config.file={CONFIG}", f"--storage.path={tmp_path}", f"--web.listen-address={address}"]
    with subprocess.Popen([*command, "--cluster.listen-address="], stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(100):
                try:
                    with urllib.request.urlopen(f"http://{address}/-/ready", timeout=1):
                        break
                except OSError:
                    time.sleep(0.1)
            yield address
        finally:
            process.terminate()


def fire(address, firing):
    """Alerts by name and server, which is CLUSTER/NAME or a name alone."""
    known = {alert.name: alert.severity for alert in table.ALERTS}
    labels = [
        {
            "alertname": name, "cluster": server.rpartition("/")[0], "server": server.rpartition("/")[2], "model": "m",
            "gpu": "g", "tp": "2", "severity": known[name],
        }
        for name, server in firing
    ]  # fmt: skip
    request = urllib.request.Request(
        f"http://{address}/api/v2/alerts",
        data=json.dumps([{"labels": each} for each in labels]).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=5):
        pass


def heard_of(address):
    """Which alerts (name, server) a receiver hears of now."""
    with urllib.request.urlopen(f"http://{address}/api/v2/alerts", timeout=5) as answer:
        return {
            (
                alert["labels"]["alertname"],
                "/".join(alert["labels"][each] for each in ("cluster", "server") if each in alert["labels"]),
            )
            for alert in json.load(answer)
            if not alert["status"]["inhibitedBy"]
        }


def settled(address, firing, expected):
    """What is heard of once that is ``expected`` and stays so, or at last. Alertmanager learns of an alert and of what it
    inhibits one after the other.
    """
    fire(address, firing)
    for _ in range(100):
        if heard_of(address) == expected:
            time.sleep(0.5)
            return heard_of(address)
        time.sleep(0.1)
    return heard_of(address)


def test_a_server_that_stands_still_has_no_other_problem(alertmanager):
    """But that its name may be another's; and a server of the same name in another cluster is another server."""
    firing = [(name, "a") for name in sorted({alert.name for alert in table.ALERTS if alert.of_server})]
    others = {("LightLLMAllReduceSlower", "b"), ("LightLLMAllReduceSlower", "other/a")}
    expected = {("LightLLMStepStuck", "a"), ("LightLLMPluginDuplicateTarget", "a"), *others}
    assert settled(alertmanager, [*firing, *sorted(others)], expected) == expected


def test_a_late_rank_is_one_ticket_and_what_follows_from_it_is_none(alertmanager):
    firing = ("LightLLMRankLate", "LightLLMAllReduceSlower", "LightLLMOperatorShareShifted", "LightLLMDecodeSlow")
    expected = {("LightLLMRankLate", "a"), ("LightLLMDecodeSlow", "a")}
    assert settled(alertmanager, [(name, "a") for name in firing], expected) == expected
