"""Whole real LightLLM servers, the plugin activated by the .pth of the built wheel.

A start takes 10 to 30 s on two cores, so each version and tensor parallelism is started twice for the whole session:
once without the plugin, for what it answers, and once with it, for everything else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lightllm_otel.exporter import discovery
from lightllm_otel.records.folder import lock_owner, ring_path

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "deploy" / "demo"
sys.path[:0] = [str(DEMO), str(Path(__file__).parent)]

import concurrent_requests  # noqa: E402  # neither folder is a package
import server as demo  # noqa: E402

Answer, Server = demo.Answer, demo.Server

PROMPTS = ("hello world", "The quick brown fox jumps over the lazy dog", "a" * 40)
NEW_TOKENS = 4
GRAPHS = {"CPU_GRAPHS": "1", "KEPT_LENGTHS": "1"}
HOSTS = [("old", 1), ("old", 2), ("new", 1), ("new", 2)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.server)


@dataclasses.dataclass(frozen=True)
class Host:
    version: str
    tp: int

    def __str__(self) -> str:
        return f"{self.version}-tp{self.tp}"

    @property
    def overlaps(self) -> bool:
        """Whether this LightLLM launches a step before it has looked at the tokens of the last one; it does since v1.1.0.

        Every request then has a decode step more than it has tokens.
        """
        return self._source("router", "model_infer", "mode_backend", "overlap_events.py").exists()

    @property
    def has_seeds(self) -> bool:
        """Whether this LightLLM samples by the seed that a request brings; it does since v1.2.0."""
        parameters = self._source("core", "objs", "sampling_params.py")
        return parameters.exists() and '("seed"' in parameters.read_text()

    def _source(self, *parts: str) -> Path:
        source = os.environ["LIGHTLLM_SRC"] if self.version == "new" else "/none"
        return Path(source, "lightllm", "server", *parts)


class Metrics:
    """One reading of /metrics."""

    def __init__(self, text: str) -> None:
        self.text = text
        families = text_string_to_metric_families(text)
        self.samples = [sample for family in families for sample in family.samples]

    def total(self, name: str, **labels: str) -> float:
        return sum(
            sample.value for sample in self.samples if sample.name == name and labels.items() <= sample.labels.items()
        )

    def labels(self, name: str, label: str, **labels: str) -> set[str]:
        return {
            sample.labels[label]
            for sample in self.samples
            if sample.name == name and sample.value and labels.items() <= sample.labels.items()
        }

    def operators(self) -> Counter[tuple[str, str]]:
        """(phase, operator) → observations."""
        counts: Counter[tuple[str, str]] = Counter()
        for sample in self.samples:
            if sample.name == "lightllm_gpu_operator_duration_seconds_count":
                counts[sample.labels["phase"], sample.labels["operator"]] += int(sample.value)
        return counts

    def step_seconds(self) -> float:
        """The mean of all steps: how long nothing may change between two of them."""
        name = "lightllm_gpu_step_duration_seconds"
        return self.total(f"{name}_sum") / max(self.total(f"{name}_count"), 1)

    def steps(self, phase: str) -> int:
        return int(self.total("lightllm_gpu_step_duration_seconds_count", phase=phase))


class Observed:
    """A running server that has the plugin, and what can be seen of it from outside."""

    def __init__(self, host: Host, server: Server, folder: Path, probe: Path) -> None:
        self.host, self.server, self.folder, self.probe = host, server, folder, probe

    def targets(self) -> list[dict[str, object]]:
        files = sorted((self.folder / "targets").glob("*.json"))
        return [group for file in files for group in json.loads(file.read_text())]

    def address(self) -> str:
        """Of the exporter that serves this server, which is not the only one in its folder for every test."""
        processes = set(self.server.processes())
        (address,) = [
            address
            for group, address in discovery.targets(self.folder).items()
            if lock_owner(ring_path(self.folder / group, 0)) in processes
        ]
        return address

    def metrics(self) -> Metrics:
        with urllib.request.urlopen(f"http://{self.address()}/metrics", timeout=10) as answer:
            return Metrics(answer.read().decode())

    def settled(self, arrived: Callable[[Metrics], object] = lambda metrics: True) -> Metrics:
        """The metrics once they no longer change and what is waited for has arrived."""
        last: list[Metrics] = []

        def quiet() -> bool:
            last.append(self.metrics())
            # Since v1.1.0 a step is launched before the last one has been read, and takes up to a second here.
            time.sleep(max(0.3, 1.5 * last[-1].step_seconds() if self.host.version == "new" else 0.0))
            return last[-1].operators() == self.metrics().operators() and bool(arrived(last[-1]))

        wait_until(quiet, 20, "metrics that are complete and at rest")
        return last[-1]

    def exporters(self) -> list[int]:
        return [pid for pid in self.server.processes() if is_exporter(pid)]

    def reports(self) -> dict[int, dict[str, Any]]:
        """What every living Python process of the server has imported."""
        return reports_of(self.server, self.probe)

    def ask_all(self) -> list[Answer]:
        return ask_all(self.server)

    def kill_host(self) -> None:
        """LightLLM's processes die; what has detached itself from them does not."""
        for pid in set(self.server.processes()) - set(self.exporters()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @staticmethod
    def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
        wait_until(condition, seconds, what)


def is_exporter(pid: int) -> bool:
    words = command_of(pid)
    return any(word == "lightllm_otel" or word.startswith("lightllm_otel.") for word in words)


def command_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError, ValueError):  # an exporter that is just being restarted
            if condition():
                return
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def ask_all(server: Server) -> list[Answer]:
    """One after the other, so that every batch has one request; and once more, which NEW answers from its cache."""
    return [server.generate(prompt, NEW_TOKENS) for _ in range(2) for prompt in PROMPTS]


@pytest.fixture(scope="session", autouse=True)
def _no_settings_of_the_developer() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("LIGHTLLM_OTEL")]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    subprocess.run([sys.executable, str(DEMO / "checkpoint.py"), str(folder)], check=True, capture_output=True)
    tokenizer = folder / "tokenizer_config.json"
    chat = {"chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}"}
    tokenizer.write_text(json.dumps({**json.loads(tokenizer.read_text()), **chat}))
    return folder


@pytest.fixture(scope="session")
def probed_python(wheel_python: Path) -> Path:
    """The wheel's Python, in which MODULE_PROBE=FOLDER reveals what every process has imported, CPU_GRAPHS=1 gives our
    timestamp kernels to recorded graphs, KEPT_LENGTHS=1 has attention keep a tensor from layer to layer, SLOW_RANK=FILE slows
    one rank down, and BROKEN_RANK breaks the plugin of one.
    """
    (site_packages,) = wheel_python.parents[1].glob("lib/python*/site-packages")
    for module, variable in (
        ("module_probe", "MODULE_PROBE"),
        ("cpu_graphs", "CPU_GRAPHS"),
        ("kept_lengths", "KEPT_LENGTHS"),
        ("slow_rank", "SLOW_RANK"),
        ("broken_rank", "BROKEN_RANK"),
    ):
        (site_packages / f"{module}.py").write_text((Path(__file__).parent / f"{module}.py").read_text())
        line = f"import os; os.environ.get('{variable}') and __import__('{module}')\n"
        (site_packages / f"aa-{module}.pth").write_text(line)  # before our own: its hooks come first
    return wheel_python


ServerOf = Callable[..., Server]


@pytest.fixture(scope="session")
def server_of(tiny_model: Path, probed_python: Path, tmp_path_factory: pytest.TempPathFactory) -> ServerOf:
    """Make, not start, a server of a version and tensor parallelism."""
    if importlib.util.find_spec("lightllm") is None or importlib.util.find_spec("torch") is None:
        pytest.skip("lightllm and torch are not installed here: make venv")

    def make(host: Host, env: dict[str, str], **options: object) -> Server:
        if host.version == "new" and not os.environ.get("LIGHTLLM_SRC"):
            pytest.skip("LIGHTLLM_SRC names no checkout of the current LightLLM")
        folder = tmp_path_factory.mktemp(f"{host}")
        # Not in the repository: `python -m` would find our package in the working directory before the wheel's.
        options = {"python": str(probed_python), "log": folder / "server.log", "cwd": folder, **options}
        return Server(tiny_model, host.version, tp=host.tp, env=env, **options)  # type: ignore[arg-type]

    return make


@dataclasses.dataclass(frozen=True)
class Stock:
    """What a server without the plugin answered, and what its processes had imported (pid → report).

    ``at_once``: answers to requests at the same time, twice; of LightLLM 0.0.1 none.
    """

    answers: list[Answer]
    reports: dict[int, dict[str, Any]]
    at_once: list[dict[str, list[int]]]
    log: str


@pytest.fixture(scope="session")
def stock_of(server_of: ServerOf, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Host], Stock]:
    seen: dict[Host, Stock] = {}

    def stock(host: Host) -> Stock:
        if host not in seen:
            folder = tmp_path_factory.mktemp("stock")
            with server_of(host, {"MODULE_PROBE": str(folder)}) as server:
                answers, reports = ask_all(server), reports_of(server, folder)
                times = range(2 if host.version == "new" else 0)
                at_once = [concurrent_requests.ask_at_once(server) for _ in times]
                seen[host] = Stock(answers, reports, at_once, server.log.read_text(errors="replace"))
        return seen[host]

    return stock


@pytest.fixture(scope="session")
def graphs_of(server_of: ServerOf) -> Callable[[Host], list[Answer]]:
    """What a server with graphs and without the plugin answers to :func:`ask_all`."""
    seen: dict[Host, list[Answer]] = {}

    def answers(host: Host) -> list[Answer]:
        if host not in seen:
            with server_of(host, GRAPHS, graphs=True) as server:
                seen[host] = ask_all(server)
        return seen[host]

    return answers


@pytest.fixture(scope="session")
def ask_at_once() -> Callable[[object], dict[str, list[int]]]:
    return concurrent_requests.ask_at_once


@pytest.fixture(scope="session")
def host_of() -> type[Host]:
    return Host


def reports_of(server: Server, folder: Path) -> dict[int, dict[str, Any]]:
    reports = {int(path.stem): json.loads(path.read_text()) for path in folder.glob("*.json")}
    return {pid: report for pid, report in reports.items() if pid in server.processes()}


Observe = Callable[..., Observed]


@contextlib.contextmanager
def observing(
    server_of: ServerOf, folder: Path, kind: tuple[str, int], env: dict[str, str], **options: object
) -> Iterator[Observed]:
    host = Host(*kind)
    probe, run = folder / "probe", folder / "run"
    probe.mkdir()
    settings = {"LIGHTLLM_OTEL": "1", "LIGHTLLM_OTEL_DIR": str(run), "LIGHTLLM_OTEL_SAMPLE_EVERY": "1"}
    settings["LIGHTLLM_OTEL_TARGETS"] = str(Path(env.get("LIGHTLLM_OTEL_DIR", run)) / "targets")
    settings = {**settings, "MODULE_PROBE": str(probe), **env}
    with server_of(host, settings, **options) as server:
        seen = Observed(host, server, Path(settings["LIGHTLLM_OTEL_DIR"]), probe)

        def operators() -> object:
            # A health check of one token is decoded. Without instrumented graphs, or unsampled, it has no operators.
            if options.get("graphs"):
                server.generate("a prefill of several tokens", NEW_TOKENS)
            return seen.metrics().operators()

        try:
            wait_until(operators, 20, "operators on /metrics")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{server.log_tail()}") from None
        yield seen


@pytest.fixture(scope="session")
def observed(
    request: pytest.FixtureRequest, server_of: ServerOf, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Observed]:
    """A server of the kind that the test asks for, shared with all tests of that kind."""
    with observing(server_of, tmp_path_factory.mktemp("observed"), request.param, {}) as seen:
        yield seen


@pytest.fixture
def observe(server_of: ServerOf, tmp_path: Path) -> Iterator[Observe]:
    """Start a server for this test alone."""
    with contextlib.ExitStack() as stack:

        def start(kind: tuple[str, int], env: dict[str, str] | None = None, **options: object) -> Observed:
            return stack.enter_context(observing(server_of, tmp_path, kind, env or {}, **options))

        yield start


@pytest.fixture
def free_port() -> int:
    return demo.free_port()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test takes the server of every kind, unless it says which one it needs."""
    chosen: pytest.Boundary | None = metafunc.definition.get_closest_marker("parametrize")
    if "observed" in metafunc.fixturenames and not (chosen and chosen.args[0] == "observed"):
        ids = [f"{version}-tp{tp}" for version, tp in HOSTS]
        metafunc.parametrize("observed", HOSTS, indirect=True, ids=ids, scope="session")
