"""A real Prometheus with our rules, two discovery files for one address, and a group of rules that cannot be evaluated."""

import datetime
import http.server
import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import servers
import table
import yaml

BEGUN = time.monotonic()
SECONDS = 60.0  # at most; it takes about five
BROKEN = {
    "name": "lightllm-broken", "interval": "1s",
    "rules": [{"record": "broken", "expr": "vector(1) * on () prometheus_http_requests_total"}],
}  # fmt: skip
(FAILING,) = [alert for alert in table.ALERTS if alert.name == "LightLLMRulesFailing"]


class Exporter(http.server.BaseHTTPRequestHandler):
    """Answers as a server's exporter does."""

    def do_GET(self):
        own = [servers.scraped("lightllm_server_info", {"server": "node-1", **servers.INFO}, {}) + " 1"]
        usual = {**servers.Server().base(), **servers.Server().steady()}
        body = (
            "\n".join([*own, *(f"{name} {value * (time.monotonic() - BEGUN):.9g}" for name, value in usual.items())])
            + "\n"
        )
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *words):
        pass


def written(folder, exporter):
    """Write the configuration: the rules as they are, but evaluated once a second. Returns Prometheus' own address."""
    for path in servers.RULES.glob("*.yml"):
        (folder / path.name).write_text(re.sub(r"(interval: )\w+", r"\g<1>1s", path.read_text()))
    (folder / "broken.yml").write_text(yaml.safe_dump({"groups": [BROKEN]}))
    for number, labels in enumerate(({"lightllm_group": "one"}, {"lightllm_group": "left over", "model": "old"})):
        (folder / f"targets.{number}.json").write_text(json.dumps([{"targets": [exporter], "labels": labels}]))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        own = f"127.0.0.1:{probe.getsockname()[1]}"
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "rule_files": [str(folder / "*.yml")],
        "scrape_configs": [
            {"job_name": "prometheus", "static_configs": [{"targets": [own]}]},
            {"job_name": "lightllm-otel", "file_sd_configs": [{"files": [str(folder / "targets.*.json")]}]},
        ],
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return own


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A function that asks the API of a running Prometheus."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("no prometheus in PATH (Debian: prometheus; .ci/run installs it)")
    folder = tmp_path_factory.mktemp("prometheus")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Exporter) as exporter:
        threading.Thread(target=exporter.serve_forever, daemon=True).start()
        own = written(folder, f"127.0.0.1:{exporter.server_port}")
        command = [program, f"--config.file={folder}/config.yaml", f"--storage.tsdb.path={folder}/data",
                   f"--web.listen-address={own}"]  # fmt: skip
        with Path(folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)

        def ask(path, **query):
            url = f"http://{own}/api/v1/{path}?{urllib.parse.urlencode(query)}"
            with urllib.request.urlopen(url, timeout=5) as answer:
                return json.loads(answer.read())["data"]

        try:
            yield ask
        finally:
            process.terminate()
            process.wait(timeout=30)
            exporter.shutdown()


def until(found):
    """Call ``found`` until it returns something, and return that."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            answer = found()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            answer = None  # it starts
        if answer:
            return answer
        time.sleep(0.3)
    raise AssertionError("nothing came")


def test_two_discovery_files_for_one_address_break_no_rule(asked):
    rates = "count(rate(lightllm_gpu_operator_compared_seconds_total[2m])) == 4"  # two operators of two targets
    until(lambda: asked("query", query=rates)["result"])
    begun = time.time()

    def evaluated():
        """All rules, once all have been evaluated with both targets there."""
        groups = [group for group in asked("rules")["groups"] if group["name"] != BROKEN["name"]]
        rules = [rule for group in groups for rule in group["rules"]]
        return rules if all(_seconds(rule["lastEvaluation"]) > begun + 1 for rule in rules) else None

    rules = until(evaluated)
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}
    assert {rule["name"] for rule in rules} >= {"LightLLMStepStuck", "lightllm:operator_slowdown:ratio2m"}
    (slowdown,) = asked("query", query='lightllm:operator_slowdown:ratio2m{operator="ffn"}')["result"]
    assert float(slowdown["value"][1]) == pytest.approx(1)


def _seconds(when):
    """Read a time as Prometheus writes it, in UTC or with an offset, to the second."""
    whole = re.sub(r"\.\d+", "", when).replace("Z", "+00:00")
    return datetime.datetime.fromisoformat(whole).timestamp()


def test_the_alert_on_failing_rules_finds_prometheus_own_count_of_them(asked):
    (series,) = until(lambda: asked("query", query=FAILING.expr)["result"])
    assert series["metric"]["rule_group"].endswith("broken.yml;lightllm-broken")
