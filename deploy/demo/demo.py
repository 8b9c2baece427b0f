"""The main job for real: a LightLLM server with LIGHTLLM_OTEL=1, a few requests, and where its GPU time went.

On a GPU where there is one, else on the CPU. LIGHTLLM_SRC=CHECKOUT takes the LightLLM in that folder in place of 0.0.1;
DEMO_SECONDS=30 ends it after that long instead of at Ctrl-C.
"""

import dataclasses
import math
import os
import signal
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from pathlib import Path

import checkpoint
import torch
from prometheus_client.parser import text_string_to_metric_families
from server import Server

from lightllm_otel.exporter import discovery
from lightllm_otel.settings import Settings

PROMPTS = ("The quick brown fox jumps over the lazy dog.", "Where does the time go?", "a" * 100)
NEW_TOKENS = 8
DURATION = "lightllm_gpu_operator_duration_seconds"
INTERPRETED = """\
There is no GPU here: these are host times of Triton's interpreter on the CPU. The server, its layers, its requests and
the counts are real; the durations and shares mean nothing about a GPU."""


@dataclasses.dataclass
class Row:
    count: float = 0
    seconds: float = 0


def main() -> int:
    for ending in (signal.SIGTERM, signal.SIGHUP):  # the server has a session of its own and would outlive us
        signal.signal(ending, leave)
    on_cpu = not torch.cuda.is_available()
    folder = Path(tempfile.mkdtemp(prefix="lightllm-otel-demo-"))
    model = checkpoint.write(Path(".cache/demo-model").resolve(), checkpoint.SHAPES["tiny"])
    env = {"LIGHTLLM_OTEL": "1", "LIGHTLLM_OTEL_DIR": str(folder)}
    if on_cpu:
        env["LIGHTLLM_OTEL_SAMPLE_EVERY"] = "1"  # a token takes a third of a second: there are few steps to choose from
    env = {**env, **{name: os.environ[name] for name in os.environ if name.startswith("LIGHTLLM_OTEL_")}}
    folder = Path(env["LIGHTLLM_OTEL_DIR"])

    version = os.environ.get("DEMO_LIGHTLLM") or ("new" if os.environ.get("LIGHTLLM_SRC") else "old")
    server = Server(model, version, cpu=on_cpu, env=env, log=folder / "server.log")
    say(f"Starting LightLLM {'on the CPU' if on_cpu else 'on ' + torch.cuda.get_device_name()}, log: {server.log}")
    say("  LIGHTLLM_OTEL=1 " + " ".join(server.command))
    with server:
        for prompt in PROMPTS:
            say(f"  {prompt[:44]!r}: {len(server.generate(prompt, NEW_TOKENS).token_ids)} tokens")
        address = exporter_address(folder)
        time.sleep(2)  # what the model process has not handed over yet is at most a second old
        say("\n" + table(read(f"http://{address}/metrics")))
        say(INTERPRETED + "\n" if on_cpu else "")
        say(f"server     {server.url}  (POST /generate)")
        say(f"live page  http://{address}/")
        say(f"metrics    http://{address}/metrics")
        if (targets := Settings.from_env(os.environ).targets) is not None:
            say(f"Prometheus file_sd_configs: [{{ files: ['{discovery.pattern(targets)}'] }}]")
        say(f"next       LIGHTLLM_OTEL_DIR={folder} lightllm-otel top    (or: doctor)")
        stay(server)
    return 0


def leave(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # once: stopping the server must not be interrupted
    raise SystemExit(128 + number)


def say(line: str) -> None:
    print(line, flush=True)


def stay(server: Server) -> None:
    seconds = float(os.environ.get("DEMO_SECONDS") or math.inf)
    say("Ctrl-C ends it." if math.isinf(seconds) else f"Up for {seconds:.0f} s.")
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            server.check_alive()
            time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))
    except KeyboardInterrupt:
        say("")


def exporter_address(folder: Path, timeout: float = 30) -> str:
    """As our own commands find it."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        for address in discovery.targets(folder).values():
            return address
        time.sleep(0.2)
    raise SystemExit(
        f"no exporter has announced itself in {folder}; try: LIGHTLLM_OTEL_DIR={folder} lightllm-otel doctor"
    )


def read(url: str) -> dict[str, dict[str, Row]]:
    """phase → operator → what /metrics says of it, eager and graph together."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    phases: dict[str, dict[str, Row]] = defaultdict(lambda: defaultdict(Row))
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == DURATION + "_count":
                phases[sample.labels["phase"]][sample.labels["operator"]].count += sample.value
            elif sample.name == DURATION + "_sum":
                phases[sample.labels["phase"]][sample.labels["operator"]].seconds += sample.value
    return phases


def table(phases: dict[str, dict[str, Row]]) -> str:
    lines = []
    for phase, operators in sorted(phases.items(), reverse=True):  # prefill comes first
        whole = sum(row.seconds for row in operators.values()) or 1.0
        lines.append(f"{phase:<16}{'count':>8}{'mean':>12}{'total':>12}{'share':>8}")
        for operator, row in sorted(operators.items(), key=lambda item: -item[1].seconds):
            if row.count:
                mean, total = row.seconds / row.count * 1e6, row.seconds * 1e3
                lines.append(f"  {operator:<14}{row.count:8.0f}{mean:9.1f} µs{total:9.2f} ms{row.seconds / whole:8.1%}")
        lines.append("")
    return "\n".join(lines) or "The exporter has no operators yet.\n"


if __name__ == "__main__":
    sys.exit(main())
