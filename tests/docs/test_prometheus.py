"""What the documents and deploy/ give to Prometheus starts it, and the README's block finds a server."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from other_user import ATTACKER, as_user
from promtools import major

from lightllm_otel.exporter.discovery import PREFIX, SUFFIX
from lightllm_otel.tools.prometheus import NoPrometheus, Prometheus

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = (".venv", ".cache", "node_modules", ".git")
BLOCK = re.compile(r"^( *)```ya?ml\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
OF_PROMETHEUS = {"scrape_configs", "rule_files", "global", "alerting", "remote_write", "scrape_config_files"}
# Unknown to Prometheus 2; deploy/compose.yaml starts a 3.
NEW_IN_3 = ("fallback_scrape_protocol", "convert_classic_histograms_to_nhcb", "always_scrape_classic_histograms")


def files(*patterns):
    found = [path for pattern in patterns for path in ROOT.rglob(pattern)]
    return sorted(path for path in found if not set(SKIPPED) & set(path.relative_to(ROOT).parts))


def blocks():
    """(document and line, text) of every YAML block."""
    for path in files("*.md"):
        text = path.read_text()
        for found in BLOCK.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            yield f"{path.relative_to(ROOT)}:{line}", found[2]


def configurations():
    """(file, configuration) of every file of deploy/ that is one, or has one inside for a Collector."""
    for path in files("deploy/**/*.yml", "deploy/**/*.yaml"):
        for document in yaml.safe_load_all(path.read_text()):
            if not isinstance(document, dict):
                continue
            name = str(path.relative_to(ROOT))
            if OF_PROMETHEUS & set(document) and "groups" not in document:
                yield name, document
            for receiver, settings in (document.get("receivers") or {}).items() if "exporters" in document else ():
                if receiver.partition("/")[0] == "prometheus":
                    yield f"{name}: {receiver}", settings["config"]


BLOCKS, CONFIGURATIONS = dict(blocks()), dict(configurations())


def checked(promtool, folder, text):
    """What promtool finds wrong; rules are found as from a checkout."""
    (folder / "grafana").symlink_to(ROOT / "grafana")
    path = folder / "prometheus.yml"
    path.write_text(text)
    kind = "rules" if "groups" in (yaml.safe_load(text) or {}) else "config"
    done = subprocess.run([promtool, "check", kind, str(path)], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


def test_the_places_are_found_that_are_checked():
    for document in ("README.md", "README.zh-CN.md", "docs/deployment.md"):
        assert any(name.startswith(document) for name in BLOCKS)
    assert {"deploy/prometheus.yml", "deploy/collector.yaml: prometheus"} <= set(CONFIGURATIONS)


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_of_a_document_starts_every_prometheus(promtool, tmp_path, name):
    """Found: the README's own block stopped Prometheus: one ``*``, in the last part of a path, is all that file_sd takes."""
    content = yaml.safe_load(BLOCKS[name])
    assert isinstance(content, dict), "a block is a whole configuration, so that it can be pasted and checked"
    if not (OF_PROMETHEUS | {"groups"}) & set(content):
        pytest.skip("not for Prometheus")
    newer = NEW_IN_3 if major(promtool) < 3 else ()
    lines = [line for line in BLOCKS[name].splitlines() if not line.strip().startswith(newer)]
    assert checked(promtool, tmp_path, "\n".join(lines) + "\n") == ""


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_configuration_of_deploy_starts_prometheus(promtool, tmp_path, name):
    config = json.loads(json.dumps(CONFIGURATIONS[name]))
    if major(promtool) < 3:
        for job in config.get("scrape_configs", ()):
            for key in NEW_IN_3:
                job.pop(key, None)
    assert checked(promtool, tmp_path, yaml.safe_dump(config)) == ""


def test_what_stopped_prometheus_is_noticed(promtool, tmp_path):
    config = {"scrape_configs": [{"job_name": "x", "file_sd_configs": [{"files": ["/dev/shm/a-*/targets/*.json"]}]}]}
    assert "is not valid for file discovery" in checked(promtool, tmp_path, yaml.safe_dump(config))


def test_the_unit_for_systemd_writes_where_the_page_beside_it_looks():
    unit = (ROOT / "deploy" / "systemd" / "lightllm.service").read_text()
    (folder,) = re.findall(r"^RuntimeDirectory=(\S+)$", unit, re.MULTILINE)
    assert f"Environment=LIGHTLLM_OTEL_TARGETS=/run/{folder}\n" in unit
    assert any(
        f"/run/{folder}/*.json" in text for name, text in BLOCKS.items() if name.startswith("docs/deployment.md")
    )


def test_every_path_of_discovery_files_is_the_one_that_is_written():
    """In documents, deploy/, messages and scripts; file names of earlier layouts are gone."""
    texts = files("*.md", "*.py", "*.yml", "*.yaml", "*.service", "*.json")
    said = {
        f"{path.relative_to(ROOT)}: {found}"
        for path in texts if not {"tests", "results", ".host"} & set(path.parts)
        for found in re.findall(r"lightllm-otel-\*\S*|\S*/targets/\*\.json", path.read_text())
    }  # fmt: skip
    assert said == set()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def a_demo(port):
    """As the README says, with a umask as careful administrators set it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LIGHTLLM_OTEL")}
    command = [
        "sh",
        "-c",
        'umask 077; exec "$@"',
        "sh",
        sys.executable,
        "-m",
        "lightllm_otel",
        "demo",
        "--port",
        str(port),
    ]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as demo:
        try:
            assert "Replaying" in demo.stdout.readline()
            yield
        finally:
            demo.terminate()


@contextlib.contextmanager
def a_prometheus(program, config):
    """A real one, as another user where we may become one. Yields its address."""
    folder = Path(tempfile.mkdtemp(prefix="lightllm-otel-test-"))
    try:
        (folder / "prometheus.yml").write_text(config)
        port, user = free_port(), {}
        if os.geteuid() == 0:
            user = {"user": ATTACKER, "group": ATTACKER, "extra_groups": []}
            os.chown(folder, ATTACKER, ATTACKER)
        command = [program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
        command.append(f"--web.listen-address=127.0.0.1:{port}")
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **user)
        started = Prometheus(process, f"http://127.0.0.1:{port}")
        try:
            started.wait_ready(folder / "log")
            yield started.url
        except NoPrometheus as problem:
            pytest.fail(str(problem))
        finally:
            started.stop()
    finally:
        shutil.rmtree(folder)


def active_targets(url, instance):
    with urllib.request.urlopen(f"{url}/api/v1/targets?state=active", timeout=10) as answer:
        found = json.load(answer)["data"]["activeTargets"]
    return [target for target in found if target["labels"].get("instance") == instance]


def discovered(url):
    """How many targets the files name, each as often as it is named."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        (found,) = re.findall(
            r"^prometheus_sd_discovered_targets{.*lightllm-otel.*} (\d+)", answer.read().decode(), re.M
        )
    return int(found)


def wait_until(condition, what):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.2)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no /dev/shm, which the README names")
def test_the_block_of_the_readme_as_it_stands_makes_prometheus_scrape_a_demo(prometheus):
    """With one line before it, so that nobody has to wait a minute. A file that somebody else left for the same address, after
    a crash perhaps, is no second target.
    """
    (block,) = [text for name, text in BLOCKS.items() if name.startswith("README.md") and "file_sd_configs" in text]
    port = free_port()
    instance = f"{socket.gethostname()}:{port}"
    left = Path(f"/dev/shm/{PREFIX}test-{os.urandom(4).hex()}{SUFFIX}")

    def leave():
        left.write_text(json.dumps([{"targets": [f"127.0.0.1:{port}"], "labels": {"instance": instance}}]))

    def is_up():
        return [target["health"] for target in active_targets(url, instance)] == ["up"]

    try:
        with a_demo(port), a_prometheus(prometheus, "global: { scrape_interval: 1s }\n" + block) as url:
            wait_until(is_up, "the demo is scraped")
            (target,) = active_targets(url, instance)
            assert target["labels"] == {"instance": instance, "job": "lightllm-otel"}
            query = f"{url}/api/v1/query?query=lightllm_server_info"
            with urllib.request.urlopen(query, timeout=10) as answer:
                assert json.load(answer)["data"]["result"]

            before = discovered(url)
            as_user(ATTACKER if os.geteuid() == 0 else os.geteuid(), leave)
            wait_until(lambda: discovered(url) == before + 1, "the other file is read as well")
            assert is_up()
    finally:
        left.unlink(missing_ok=True)
    assert not [path for path in left.parent.glob(f"{PREFIX}*") if f":{port}" in path.read_text()]
