"""Whole servers, stock and instrumented: the cross-check of what overhead.py measures in one process, and start-up."""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import http.client
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fixed_batch
import numpy as np
from server import Server, ServerDied, free_port
from workers import DEMO, checkpoint_of, say

from lightllm_otel.exporter import discovery
from lightllm_otel.records.reader import RingReader
from lightllm_otel.records.vocabulary import DropReason

Rows = list[dict[str, Any]]
STOCK, INSTRUMENTED = "stock", "instrumented"
FLAGS = ["--max_total_token_num", "24000", "--mem_fraction", "0.2"]
TP2_FLAGS = [*FLAGS, "--graph_max_batch_size", "8"]
START_TIMEOUT = 200.0
READ_SECONDS = 1.5  # the plugin hands its steps over on the idle tick, and the exporter polls
# Works whether or not this Python has our .pth file; it sets LIGHTLLM_OTEL for a server only where it is not set.
LAUNCHER = [sys.executable, "-m", "lightllm_otel", "run", "--"]
WANTED_METRICS = (
    "lightllm_otel_distortion_ratio", "lightllm_otel_records_dropped_total", "lightllm_otel_errors_total",
    "lightllm_otel_steps_sampled_total", "lightllm_otel_instrumented_graphs", "lightllm_otel_hook_seconds_total",
)  # fmt: skip


def settings(folder: Path, every: int | None = None) -> dict[str, str]:
    """Of an instrumented server: the defaults, but for what is given."""
    wanted = {"LIGHTLLM_OTEL": "1", "LIGHTLLM_OTEL_DIR": str(folder)}
    return {**wanted, "LIGHTLLM_OTEL_SAMPLE_EVERY": str(every)} if every else wanted


class Started:
    """A server that is started now; ``seconds`` until it has answered, ``gpu_mib`` that are used since then."""

    def __init__(self, server: Server, others: Sequence[Server] = ()) -> None:
        self.servers = [server, *others]
        before = gpu_mib()
        for attempt in range(2):
            began = time.perf_counter()
            try:
                for each in self.servers:
                    each.start()
                server.wait_healthy()
            except BaseException as error:
                self.stop()
                # LightLLM looks for free ports long before it binds them.
                if attempt == 0 and isinstance(error, ServerDied) and "Address already in use" in str(error):
                    continue
                raise
            break
        self.seconds = time.perf_counter() - began
        after = gpu_mib()
        self.gpu_mib = None if before is None or after is None else after - before

    # What fixed_batch wants of a server: the first one answers, and all processes of all of them stand still.

    @property
    def port(self) -> int:
        return self.servers[0].port

    def generate(self, *words: Any, **named: Any) -> Any:
        return self.servers[0].generate(*words, **named)

    def processes(self) -> list[int]:
        own = {str(server.port) for server in self.servers[1:]}
        return [pid for server in self.servers for pid in server.processes() if not _is_first(pid, own)]

    def stop(self) -> None:
        for each in self.servers:
            each.stop()

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


def _is_first(pid: int, ports: set[str]) -> bool:
    """Whether this is the first process of one of the servers at these ports; it may be the one that speaks HTTP."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return True
    return bool(ports & set(words))


def gpu_mib() -> int | None:
    """Used on the whole GPU: inside a container the processes on it often cannot be told apart."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return int(answer.splitlines()[0])


def facts_of(folder: Path) -> Rows:
    """What every rank's ring says of instrumented graphs, errors and drops."""
    found = []
    for path in sorted(folder.glob("*/rank-*.ring")):
        ring = RingReader(path)
        header = ring.header
        found.append({
            "rank": int(path.stem.partition("-")[2]), "twins": ring.facts().get("graphs", {}),
            "dropped": {reason.value: int(header["dropped"][reason.code]) for reason in DropReason},
            "errors": [int(count) for count in header["errors"]], "steps": int(header["steps"]),
            "sampled_steps": int(header["sampled_steps"]),
        })  # fmt: skip
    return found


def metrics_of(folder: Path) -> dict[str, float]:
    """The exporter's own figures, added up over their labels."""
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, float] = {}
    for address in discovery.targets(folder).values():
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name in WANTED_METRICS:
                    found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


# Load ------------------------------------------------------------------------------------------------------------------


def stream(port: int, text: str, tokens: int) -> list[float]:
    """When each token of one request arrived."""
    body = json.dumps(
        {"inputs": text, "parameters": {"max_new_tokens": tokens, "do_sample": False, "ignore_eos": True}}
    )
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", "/generate_stream", body, {"Content-Type": "application/json"})
        arrivals = []
        for line in connection.getresponse():
            if line.startswith(b"data:"):
                arrivals.append(time.perf_counter())
        return arrivals
    finally:
        connection.close()


def load(port: int, number: int, requests: int, input_tokens: int, output_tokens: int) -> dict[str, Any]:
    """One round of concurrent requests; the same prompts for the same number."""
    texts = fixed_batch.prompts(requests, input_tokens, number * requests)
    with concurrent.futures.ThreadPoolExecutor(requests) as pool:
        began = time.perf_counter()
        arrivals = list(pool.map(lambda text: stream(port, text, output_tokens), texts))
    seconds = max(each[-1] for each in arrivals) - began
    intervals = np.concatenate([np.diff(each) for each in arrivals])
    tokens = sum(map(len, arrivals))
    return {
        "tokens": tokens, "seconds": round(seconds, 5), "tokens_per_second": round(tokens / seconds, 2),
        "itl_p50_us": round(1e6 * float(np.percentile(intervals, 50)), 1),
        "itl_p99_us": round(1e6 * float(np.percentile(intervals, 99)), 1),
        "itl_mean_us": round(1e6 * float(intervals.mean()), 1),
    }  # fmt: skip


# Two servers in turn ---------------------------------------------------------------------------------------------------


def measure(arguments: argparse.Namespace, work: Path, keep: Any) -> None:
    """Start both, load them in turn, stop them; then, for their start-up alone, start both again the other way round."""
    model = checkpoint_of(arguments.work, arguments.shape, arguments.cpu)
    say("checkpoint is there")
    load_of = (3, 8, 6) if arguments.cpu else (arguments.requests, 256, 128)

    def start(kind: str, number: int) -> Started:
        folder = work / f"{kind}-{number}"
        folder.mkdir()
        env = {"DISABLE_GPU_TENSOR_CACHE": "1", **(settings(folder) if kind == INSTRUMENTED else {})}
        started = Started(Server(
            model, "new", cpu=arguments.cpu, source=arguments.source, env=env, arguments=[] if arguments.cpu else FLAGS,
            launcher=LAUNCHER if kind == INSTRUMENTED else [],
            log=work / f"{kind}-{number}.log", start_timeout=START_TIMEOUT,
        ))  # fmt: skip
        keep([{"kind": "start", "tp": 1, "server": kind, "number": number, "seconds": round(started.seconds, 3),
               "gpu_mib": started.gpu_mib}])  # fmt: skip
        say(f"{kind} started in {started.seconds:.1f} s")
        return started

    with contextlib.ExitStack() as stack:
        servers = {kind: stack.enter_context(start(kind, 0)) for kind in (STOCK, INSTRUMENTED)}
        for number in range(2):  # kernels are compiled and tuned in the first batches
            for each in servers.values():
                load(each.port, number, *load_of)
        for number in range(arguments.rounds):
            for kind in (STOCK, INSTRUMENTED) if number % 2 == 0 else (INSTRUMENTED, STOCK):
                keep([{"kind": "round", "server": kind, "round": number, "requests": load_of[0],
                       "input_tokens": load_of[1], "output_tokens": load_of[2],
                       **load(servers[kind].port, number + 2, *load_of)}])  # fmt: skip
        say(f"{arguments.rounds} rounds")
        time.sleep(READ_SECONDS)
        folder = work / f"{INSTRUMENTED}-0"
        keep([{"kind": "ring", "tp": 1, **facts} for facts in facts_of(folder)])
        keep([{"kind": "metrics", "tp": 1, **metrics_of(folder)}])
    for number in range(1, arguments.starts):
        for kind in (INSTRUMENTED, STOCK):
            start(kind, number).stop()


# Two ranks -------------------------------------------------------------------------------------------------------------


def measure_tp2(arguments: argparse.Namespace, work: Path, keep: Any) -> None:
    """Two "nodes" of one group on one GPU, which share it by time slices: one after the other, and only for start-up,
    instrumented graphs, and the same tokens; the third server, stock once more, has found all kernels compiled, as the second
    had.
    """
    model = checkpoint_of(arguments.work, "tiny" if arguments.cpu else "llama-8-layers", arguments.cpu)
    say("checkpoint is there")
    requests, input_tokens, output_tokens = (2, 8, 4) if arguments.cpu else (8, 64, 32)
    reference: Any = None
    for name in (STOCK, INSTRUMENTED, f"{STOCK} again"):
        folder = work / name.replace(" ", "-")
        folder.mkdir()
        env = settings(folder, every=4) if name == INSTRUMENTED else {}
        with Started(*_nodes(arguments, model, folder, env)) as started:
            keep([{"kind": "start", "tp": 2, "server": name, "number": 0, "seconds": round(started.seconds, 3),
                   "gpu_mib": started.gpu_mib}])  # fmt: skip
            say(f"tp 2, {name} started in {started.seconds:.1f} s")
            fixed_batch.generate(started, requests, input_tokens, 4, first=900)
            answers = []
            for repetition in range(2):  # of other prompts each: what comes twice is answered from the prompt cache
                tokens, seconds = fixed_batch.generate(
                    started, requests, input_tokens, output_tokens, first=repetition * requests
                )
                answers.append(tokens)
                count = sum(map(len, tokens))
                keep([{"kind": "tp2", "server": name, "repetition": repetition, "tokens": count,
                       "seconds": round(seconds, 4), "tokens_per_second": round(count / seconds, 2)}])  # fmt: skip
            reference = reference or answers
            keep([{"kind": "tp2_tokens", "server": name, "tokens_compared": sum(map(len, answers[0] + answers[1])),
                   "same_as_stock": answers == reference}])  # fmt: skip
            time.sleep(READ_SECONDS)
            keep([{"kind": "ring", "tp": 2, **facts} for facts in facts_of(folder)])
            if name == INSTRUMENTED:
                keep([{"kind": "metrics", "tp": 2, **metrics_of(folder)}])


def _nodes(
    arguments: argparse.Namespace, model: Path, folder: Path, env: dict[str, str]
) -> tuple[Server, list[Server]]:
    """NCCL takes two ranks on one GPU only from different hosts."""
    port = free_port()
    shared = {"NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1"}
    servers = []
    for rank in range(2):
        flags = [] if arguments.cpu else list(TP2_FLAGS)
        flags += ["--nnodes", "2", "--node_rank", str(rank), "--nccl_host", "127.0.0.1", "--nccl_port", str(port)]
        servers.append(Server(
            model, "new", cpu=arguments.cpu, tp=2, source=arguments.source,
            env={**shared, "NCCL_HOSTID": f"node{rank}", "DISABLE_GPU_TENSOR_CACHE": "1", **env}, arguments=flags,
            launcher=LAUNCHER if env else [], script=DEMO / "node.py",
            log=folder / f"node{rank}.log", start_timeout=START_TIMEOUT,
        ))  # fmt: skip
    return servers[0], servers[1:]
