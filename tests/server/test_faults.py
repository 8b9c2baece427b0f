"""The exporter dies, LightLLM's health monitor watches, another server starts beside, Prometheus scrapes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Observed

one_server = pytest.mark.parametrize("observed", [("old", 1)], indirect=True, ids=["old-tp1"])

# In a container the api_server is PID 1: what detaches itself becomes its child. The attribute survives exec.
AS_INIT = "import ctypes, os, sys; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0); os.execvp(sys.argv[1], sys.argv[1:])"


def kill_exporter(observed: Observed) -> int:
    (exporter,) = observed.exporters()
    os.kill(exporter, signal.SIGKILL)
    return exporter


@one_server
def test_a_killed_exporter_comes_back(observed: Observed) -> None:
    killed = kill_exporter(observed)

    def back() -> object:
        # OLD's model thread looks after the exporter when it has work; an idle one does not.
        observed.server.generate("without an exporter", 2)
        return observed.exporters() not in ([], [killed]) and observed.metrics()

    observed.wait_until(back, 60, "a new exporter that answers")
    before = observed.settled()
    observed.server.generate("with a new one", 3)
    observed.settled(lambda metrics: metrics.steps("decode") >= before.steps("decode") + 2)


@pytest.mark.parametrize("version", ["old", "new"])
def test_health_monitor_does_not_care_about_the_exporter(
    version: str, observe: Callable[..., Observed], wheel_python: Path
) -> None:
    """The monitor kills the server when a process that it saw at start is gone three times in a row."""
    observed = observe(
        (version, 1),
        env={"HEALTH_CHECK_INTERVAL_SECONDS": "1"},
        arguments=["--health_monitor"],
        launcher=[str(wheel_python), "-I", "-S", "-c", AS_INIT],
    )
    observed.wait_until(lambda: "Health check passed" in observed.server.log.read_text(), 60, "a first health check")
    kill_exporter(observed)
    time.sleep(8)
    assert observed.server.alive, observed.server.log_tail()
    assert len(observed.server.generate("still here", 3).token_ids) == 3

    def back() -> object:
        observed.server.generate("still here", 2)
        return observed.exporters() and observed.metrics()

    observed.wait_until(back, 60, "a new exporter that answers")
    time.sleep(4)  # nor about the new one
    assert observed.server.alive, observed.server.log_tail()


@pytest.mark.parametrize("observed", [("old", 1), ("new", 1)], indirect=True, ids=["old-tp1", "new-tp1"])
def test_two_servers_on_one_host_are_both_visible_and_the_exporter_of_one_ends_with_it(
    observed: Observed, observe: Callable[..., Observed]
) -> None:
    """Where LightLLM finds a free nccl_port itself, neither of them is given one."""
    second = observe((observed.host.version, 1), env={"LIGHTLLM_OTEL_DIR": str(observed.folder)})
    targets = [target for group in observed.targets() for target in group["targets"]]
    assert len(targets) == 2
    assert observed.address() != second.address()

    first_before, second_before = observed.settled(), second.settled()
    second.server.generate("to the second", 3)
    steps = 2 + second.host.overlaps
    second.settled(lambda metrics: metrics.steps("decode") == second_before.steps("decode") + steps)
    assert observed.metrics().steps("decode") == first_before.steps("decode")

    (exporter,) = second.exporters()
    second.kill_host()
    second.wait_until(lambda: not second.exporters(), 30, f"end of exporter {exporter}")
    assert [target for group in observed.targets() for target in group["targets"]] == [observed.address()]


@pytest.mark.skipif(not shutil.which("prometheus"), reason="Debian's prometheus is not installed")
@one_server
def test_prometheus_finds_and_scrapes_it(observed: Observed, free_port: int, tmp_path: Path) -> None:
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [
            {
                "job_name": "lightllm",
                "file_sd_configs": [{"files": [f"{observed.folder}/targets/*.json"], "refresh_interval": "1s"}],
            }
        ],
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    command = ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    command += [f"--web.listen-address=127.0.0.1:{free_port}"]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as prometheus:
        try:
            observed.server.generate("for Prometheus", 4)

            def value(query: str) -> float:
                url = f"http://127.0.0.1:{free_port}/api/v1/query?" + urllib.parse.urlencode({"query": query})
                with urllib.request.urlopen(url, timeout=5) as answer:
                    results: list[dict[str, Any]] = json.load(answer)["data"]["result"]
                return float(results[0]["value"][1]) if results else float("nan")

            name = "lightllm_gpu_operator_duration_seconds"
            observed.wait_until(lambda: value('up{job="lightllm"}') == 1, 30, (tmp_path / "log").read_text())
            observed.wait_until(lambda: value(f'sum({name}_count{{phase="decode"}})') > 0, 15, "a scrape")
            # What a dashboard asks: the share of an operator, and a quantile of its duration.
            share = f'sum({name}_sum{{operator="attention"}}) / sum({name}_sum)'
            quantile = f'histogram_quantile(0.5, sum by (le) ({name}_bucket{{operator="ffn"}}))'
            assert 0 < value(share) < 1
            assert value(quantile) > 0
        finally:
            prometheus.kill()
