"""A real Prometheus scrapes the demonstration, and every query of the dashboards has data in it."""

import http.server
import itertools
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request

import pytest
from dashboards import ALL

from lightllm_otel.tools.prometheus import Prometheus

# What needs more than simulated servers on one host: an answer is composed for it.
NEEDS_LIGHTLLM = "LightLLM's own /metrics"
NEEDS_DCGM = "dcgm-exporter"
NEEDS_HOSTS = "a group that spans hosts"
NEEDS_RECEIVER = "a receiver of spans that takes none"
ELSEWHERE = {
    "overview: To the first token A": NEEDS_LIGHTLLM, "overview: To the first token B": NEEDS_LIGHTLLM,
    "overview: Per further token A": NEEDS_LIGHTLLM, "overview: Per further token B": NEEDS_LIGHTLLM,
    "overview: Waiting requests A": NEEDS_LIGHTLLM,
    "communication: NVLink traffic A": NEEDS_DCGM, "communication: Tensor cores busy A": NEEDS_DCGM,
    "plugin: Spans dropped A": NEEDS_RECEIVER,
    "communication: Of a group that spans hosts: minimum on this host A": NEEDS_HOSTS,
}  # fmt: skip
DEADLINE = 150.0


def composed(count):
    """What LightLLM, dcgm-exporter and a group on two hosts say; counters grow with ``count``."""
    lines = ["lightllm_queue_size 3"]
    for name in ("lightllm_request_first_token_duration", "lightllm_request_mean_time_per_token_duration"):
        lines += [f'{name}_bucket{{le="{le}"}} {count * share}' for le, share in (("0.1", 1), ("1", 3), ("+Inf", 4))]
    for server, rank in itertools.product((1, 2, 3), range(4)):
        gpu = f'{{UUID="GPU-simulated-{server}-{rank}",Hostname="a"}}'
        lines += [f"DCGM_FI_PROF_NVLINK_TX_BYTES{gpu} 1e9", f"DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{gpu} 0.4"]
    at = '{site="ffn",phase="decode",scope="node"}'
    lines.append(f"lightllm_gpu_collective_local_minimum_seconds_total{at} {count * 1e-4}")
    lines.append(f"lightllm_gpu_collective_local_calls_total{at} {count}")
    lines.append(f'lightllm_otel_spans_dropped_total{{reason="receiver"}} {count}')
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def other_exporter():
    counts = itertools.count(1)

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = composed(next(counts)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def free_ports(count):
    """That many in a row; below the range of outgoing connections."""
    for first in range(21000, 27000, 10):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise OSError("no free ports")


class Asked:
    """Answers of a Prometheus, by query."""

    def __init__(self, url):
        self.url = url

    def ask(self, expr):
        query = urllib.parse.urlencode({"query": expr})
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{query}", timeout=20) as answer:
            result = json.loads(answer.read())["data"]["result"]
        return [each["metric"] for each in result if each["value"][1] != "NaN"]


@pytest.fixture(scope="module")
def prometheus(other_exporter, tmp_path_factory):
    """With all data that there will be, or what there is after a while."""
    if shutil.which("prometheus") is None:
        pytest.skip("no prometheus in PATH (Debian: prometheus; .ci/run installs it)")
    port = free_ports(4)
    folder = tmp_path_factory.mktemp("prometheus")
    command = [sys.executable, "-m", "lightllm_otel", "demo", "--fleet", "--port", str(port), "--seconds", "280"]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert "simulated" in demo.stdout.readline()
    targets = [demo.stdout.readline().strip().removeprefix("http://").removesuffix("/metrics") for _ in range(3)]
    found = Prometheus.start(folder, targets, port + 3, jobs=[("others", other_exporter)])
    try:
        asked = Asked(found.url)
        deadline = time.monotonic() + DEADLINE
        waiting = list(ALL)
        while waiting and time.monotonic() < deadline:
            time.sleep(3)
            try:
                waiting = [target for target in waiting if not asked.ask(target.expr)]
            except OSError:
                continue  # it is starting
        yield asked
    finally:
        found.stop()
        demo.terminate()
        demo.wait(timeout=20)
        demo.stdout.close()


@pytest.mark.parametrize("target", ALL, ids=str)
def test_the_query_has_data_with_the_labels_of_its_legend(prometheus, target):
    series = prometheus.ask(target.expr)
    assert series
    assert all(target.legend <= set(labels) for labels in series)
    if target.panel["type"] == "stat":
        assert len(series) == 1
    assert len(series) < 400


def test_only_these_need_more_than_the_demonstration(prometheus):
    """Their series come from elsewhere; everything else is the demonstration's own."""
    names = [name for name in ELSEWHERE if name not in {str(target) for target in ALL}]
    assert names == []
    foreign = ("lightllm_queue_size", "lightllm_request_", "DCGM_", "_local_", "spans_dropped")
    assert {str(target) for target in ALL if any(name in target.expr for name in foreign)} == set(ELSEWHERE)


def test_the_demonstration_shows_who_is_worse_than_the_peers(prometheus):
    """Its third server has a GPU that is held down: it is the slowest, and its rank 2 is the one that comes last."""
    slowest = next(target for target in ALL if str(target).startswith("fleet: Servers, the slowest"))
    (first,) = prometheus.ask(f"topk(1, {slowest.expr})")
    late = next(target for target in ALL if str(target) == "communication: Came last A")
    (who,) = prometheus.ask(f"topk(1, {late.expr})")
    assert who["instance"] == first["instance"]
    assert who["rank"] == "2"
