"""The example of Alertmanager: who hears of what."""

import subprocess
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
        assert rule["equal"] == ["server", "model", "gpu", "tp"]
