"""docs/metrics.md: a real Prometheus 3 makes native histograms of ours, with the block and the queries that stand there."""

import http.server
import json
import re
import subprocess
import threading
import time
import urllib.parse
import urllib.request

import pytest
import yaml
from promtools import major, tools
from test_prometheus import BLOCKS, ROOT, free_port, wait_until

from lightllm_otel.exporter.metrics import HISTOGRAM, METRICS
from lightllm_otel.tools.prometheus import Prometheus

HISTOGRAMS = [metric.name for metric in METRICS if metric.kind == HISTOGRAM]
PAGE = (ROOT / "docs" / "metrics.md").read_text()
(BLOCK,) = [yaml.safe_load(text) for text in BLOCKS.values() if "convert_classic_histograms_to_nhcb" in text]
SECTION = PAGE.partition("### Native histograms in Prometheus 3")[2].partition("\n### ")[0]
QUERIES = re.findall(r"^\w.*", SECTION.partition("```promql\n")[2].partition("```")[0], re.MULTILINE)


def program():
    """Return a Prometheus 3, or skip."""
    found = [path for path in tools("prometheus") if isinstance(path, str) and major(path) >= 3]
    if not found:
        pytest.skip("no Prometheus 3 (.ci/run unpacks one from Debian's next release)")
    return found[0]


class Growing(http.server.BaseHTTPRequestHandler):
    """Counts the same calls again and again, as a server does."""

    def do_GET(self):
        import groups
        from prometheus_client import CollectorRegistry
        from prometheus_client.exposition import generate_latest

        from lightllm_otel.exporter.prometheus import GroupCollector

        server = self.server
        if not hasattr(server, "group"):
            server.group = groups.full_group(ranks=1)
        for histogram in server.group.operators.histograms.values():
            histogram.observe(groups.np.full(99, 2.03e-6))
        registry = CollectorRegistry(auto_describe=False)
        registry.register(GroupCollector(server.group))
        body = generate_latest(registry)
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A function that asks a Prometheus 3 which scrapes such a server with the block of the page."""
    tool, folder = program(), tmp_path_factory.mktemp("native")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Growing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        (job,) = BLOCK["scrape_configs"]
        job = {key: value for key, value in job.items() if key != "file_sd_configs"}
        job["static_configs"] = [{"targets": [f"127.0.0.1:{server.server_port}"]}]
        config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [job]}
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        port = free_port()
        command = [tool, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
                   f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=native-histograms"]  # fmt: skip
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        started = Prometheus(process, f"http://127.0.0.1:{port}")

        def ask(query):
            url = f"{started.url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
            with urllib.request.urlopen(url, timeout=10) as answer:
                said = json.load(answer)
            assert not said.get("warnings"), said["warnings"]
            return said["data"]["result"]

        try:
            started.wait_ready(folder / "log")
            wait_until(lambda: ask("count_over_time(up[1m]) >= 4"), "four scrapes")
            yield ask
        finally:
            started.stop()
            server.shutdown()


@pytest.mark.parametrize("name", ["lightllm_gpu_operator_duration_seconds", "lightllm_gpu_step_duration_seconds"])
def test_a_native_histogram_has_what_the_classic_one_has(asked, name):
    labels = "operator, phase, mode" if "operator" in name else "phase, mode"
    at = f"@ {time.time() - 1:.3f}"
    for native, classic in (
        (f"histogram_count({name} {at})", f"{name}_count {at}"),
        (f"histogram_sum({name} {at})", f"{name}_sum {at}"),
        (f"histogram_quantile(0.5, {name} {at})", f"histogram_quantile(0.5, {name}_bucket {at})"),
    ):
        both = [
            {
                tuple(row["metric"].get(label) for label in labels.split(", ")): float(row["value"][1])
                for row in asked(query)
            }
            for query in (native, classic)
        ]
        assert both[0]
        assert both[0] == pytest.approx(both[1])


def test_the_queries_of_the_page_get_an_answer_over_all_phases(asked):
    assert len(QUERIES) == 2
    for query in QUERIES:
        found = {row["metric"]["operator"]: float(row["value"][1]) for row in asked(query)}
        assert 1.9e-6 <= found["kv_write"] <= 2.7e-6


def test_phases_can_be_added_up(asked):
    """Prometheus warns where bounds differ; ``asked`` fails then."""
    for name in HISTOGRAMS[:2]:
        (row,) = asked(f"histogram_count(sum({name}))")
        assert float(row["value"][1]) > 0
