"""What traces cost and whether they are complete: 50 streaming requests at a time, of which 1, 10 or 100 % are traced.

    python benchmarks/cost/tracing.py [--part rounds] [--part links] [--rounds N] [--seconds N] [--cpu] [--out FOLDER]
    python benchmarks/cost/tracing.py --nothing --merge FILE FILE … --out FOLDER

Two servers run beside each other, both with the plugin, one of them with traces; each round of requests goes to one of them.
In every block each case has one round, in an order that changes from block to block, so a machine that drifts does not decide.
Two servers differ by themselves, so there are also rounds of the traced server in which no request is traced: against those
`throughput_loss_percent_within` compares. Beside the tokens per second stand the CPU seconds of all of a server's processes in
a round, which vary less: `cpu_increase_percent`. Several GPUs can measure at once: --lane tells their blocks apart.
A third server writes down LightLLM's own list of requests in each step; the links of its step spans are checked against it.
The receiver is this process's: it keeps the bytes, and reads them when all is over.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import http.client
import http.server
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import _paths  # noqa: F401 - puts the other folders on sys.path
import fixed_batch
import outcome
from server import Server
from span_receiver import Receiver
from tracing_claims import DROPPED, NONE, PLAIN, SHARES, completeness, links, summarise
from workers import checkpoint_of, say

STEP_LISTS = Path(__file__).with_name("step_lists")  # a sitecustomize for the model process
Rows = list[dict[str, Any]]
LAUNCHER = [sys.executable, "-m", "lightllm_otel", "run", "--"]
PARTS_OF_RUN = ("links", "rounds")
# All requests in one graph: without, a step is bound by the host, and rounds differ by a tenth.
FLAGS = ["--max_total_token_num", "24000", "--mem_fraction", "0.2", "--graph_max_batch_size", "64"]
SETTLE_SECONDS = 5.0


# Load ------------------------------------------------------------------------------------------------------------------


def parent_of(round_number: int, request: int) -> str:
    """The caller's span: of which request it is can be read off."""
    return f"{round_number + 1:08x}{request + 1:08x}"


def header(round_number: int, request: int, traced: bool) -> str:
    return f"00-{round_number + 1:016x}{request + 1:016x}-{parent_of(round_number, request)}-{'01' if traced else '00'}"


def is_traced(round_number: int, request: int, requests: int, share: int) -> bool:
    """So many percent of all requests, evenly over rounds that have fewer than a hundred."""
    at = round_number * requests + request
    return (at + 1) * share // 100 > at * share // 100


def stream(port: int, text: str, tokens: int, traceparent: str) -> tuple[int, float]:
    """``(tokens, when the last one arrived)``."""
    parameters = {"max_new_tokens": tokens, "do_sample": False, "ignore_eos": True}
    body = json.dumps({"inputs": text, "parameters": parameters})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request(
            "POST", "/generate_stream", body, {"Content-Type": "application/json", "traceparent": traceparent}
        )
        count = sum(line.startswith(b"data:") for line in connection.getresponse())
        return count, time.perf_counter()
    finally:
        connection.close()


def cpu_seconds(server: Any) -> float:
    """Of all its processes so far, the exporter among them; to hundredths."""
    ticks = 0
    for pid in server.processes():
        with contextlib.suppress(OSError):
            # After the name, which may have blanks: state is the third field, utime and stime are the 14th and 15th.
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(words[11]) + int(words[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def load(server: Any, round_number: int, share: int, size: tuple[int, int, int]) -> dict[str, Any]:
    """One round; prompts that nobody has asked before."""
    requests, input_tokens, output_tokens = size
    texts = fixed_batch.prompts(requests, input_tokens, round_number * requests)
    traced = [is_traced(round_number, request, requests, share) for request in range(requests)]

    def ask(request: int) -> tuple[int, float]:
        return stream(server.port, texts[request], output_tokens, header(round_number, request, traced[request]))

    used = cpu_seconds(server)
    with concurrent.futures.ThreadPoolExecutor(requests) as pool:
        began = time.perf_counter()
        answers = list(pool.map(ask, range(requests)))
    seconds = max(last for _, last in answers) - began
    tokens = sum(count for count, _ in answers)
    return {
        "round": round_number, "share_percent": share, "tokens": tokens, "seconds": round(seconds, 5),
        "tokens_per_second": round(tokens / seconds, 2), "traced": sum(traced),
        "cpu_seconds": round(cpu_seconds(server) - used, 2),
        "parents": [parent_of(round_number, request) for request in range(requests) if traced[request]],
    }  # fmt: skip


# The servers -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(arguments: argparse.Namespace, model: Path, folder: Path, environ: Mapping[str, str]) -> Iterator[Server]:
    folder.mkdir(parents=True)
    env = {"LIGHTLLM_OTEL": "1", "LIGHTLLM_OTEL_DIR": str(folder / "run"), "DISABLE_GPU_TENSOR_CACHE": "1", **environ}
    server = Server(
        model, "new", cpu=arguments.cpu, source=arguments.source, env=env, arguments=[] if arguments.cpu else FLAGS,
        launcher=LAUNCHER, log=folder / "server.log", start_timeout=300,
    )  # fmt: skip
    with server:
        yield server


def own_figures(folder: Path) -> dict[str, float]:
    """The plugin's errors and lost spans, in all and by reason, of the exporter of this folder."""
    import urllib.request

    from prometheus_client.parser import text_string_to_metric_families

    from lightllm_otel.exporter import discovery

    found = {
        "lightllm_otel_errors_total": 0.0,
        "lightllm_otel_export_errors_total": 0.0,
        "lightllm_otel_spans_dropped_total": 0.0,
    }
    for address in discovery.targets(folder / "run").values():
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name in found:
                    found[sample.name] += sample.value
                if sample.name == "lightllm_otel_spans_dropped_total":
                    found[DROPPED + sample.labels["reason"]] = sample.value
    return found


def measure(arguments: argparse.Namespace, model: Path, work: Path, keep: Callable[[dict[str, Any]], None]) -> None:
    size = (arguments.requests, arguments.input, arguments.output)
    cases = (PLAIN, NONE, *SHARES)
    receiver = Receiver()
    parents: list[str] = []
    with contextlib.ExitStack() as stack:
        environs: dict[str, Mapping[str, str]] = {"plain": {}, "traced": receiver.environ}
        # Side by side: a start takes longer than all rounds of a case.
        with concurrent.futures.ThreadPoolExecutor(len(environs)) as pool:
            starts = [
                pool.submit(stack.enter_context, serving(arguments, model, work / name, environs[name]))
                for name in environs
            ]
        plain, traced = (start.result() for start in starts)
        say("both servers are healthy")
        number = 0
        for server in (plain, traced):  # kernels are compiled and tuned in the first batches
            load(server, number, 0, size)
            number += 1
        began = time.perf_counter()
        for block in range(arguments.rounds):
            if time.perf_counter() - began > arguments.seconds:
                break
            order = np.random.default_rng(block).permutation(cases).tolist()
            for share in order:
                row = load(plain if share == PLAIN else traced, number, max(share, 0), size)
                number += 1
                parents += row.pop("parents")
                keep({"kind": "round", "block": block, **row, "share_percent": share})
            say(f"block {block} is done")
        time.sleep(SETTLE_SECONDS)
        figures = own_figures(work / "traced")
    keep({
        "kind": "traces", **completeness(receiver.spans(), parents),
        "errors": figures["lightllm_otel_errors_total"] + figures["lightllm_otel_export_errors_total"],
        "spans_dropped": figures["lightllm_otel_spans_dropped_total"],
        **{name: count for name, count in figures.items() if name.startswith(DROPPED)},
    })  # fmt: skip


def check_links(arguments: argparse.Namespace, model: Path, work: Path, keep: Callable[[dict[str, Any]], None]) -> None:
    receiver, lists = Receiver(), work / "steps.jsonl"
    environ = {
        **receiver.environ, "LIGHTLLM_OTEL_SAMPLE_EVERY": "8", "STEP_LISTS": str(lists),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(STEP_LISTS), os.environ.get("PYTHONPATH", "")))),
    }  # fmt: skip
    with serving(arguments, model, work / "checked", environ) as server:
        load(server, 0, 100, (arguments.requests, arguments.input, arguments.output))
        time.sleep(SETTLE_SECONDS)
    keep({"kind": "links", **links(receiver.spans(), [json.loads(line) for line in lists.read_text().splitlines()])})


def together(merged: Iterable[Mapping[str, Any]]) -> Rows:
    """Rows of earlier files; the last that has a part of a fast path counts for it."""
    found: dict[Any, Rows] = {}
    for earlier in merged:
        own: dict[Any, Rows] = defaultdict(list)
        for row in earlier["rows"]:
            if "kind" in row:
                own["links" if row["kind"] == "links" else "rounds", row.get("lane", 0)].append(row)
        found |= own
    return [row for rows in found.values() for row in rows]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--part", action="append", choices=PARTS_OF_RUN, help="default: both")
    made.add_argument("--rounds", type=int, default=100, help="blocks of five rounds")
    made.add_argument("--seconds", type=float, default=600.0, help="no block begins later than that after the first")
    made.add_argument("--requests", type=int, default=50)
    made.add_argument("--input", type=int, default=256)
    made.add_argument("--output", type=int, default=128)
    made.add_argument("--shape", default="llama-7b")
    made.add_argument(
        "--lane", type=int, default=0, help="of several that measure at the same time: the number of this one"
    )
    made.add_argument("--merge", nargs="*", type=Path, default=[], help="earlier partial results")
    made.add_argument("--nothing", action="store_true", help="measure nothing: put the results of --merge together")
    made.add_argument("--cpu", action="store_true", help="a tiny model on the CPU: a try, no measurement")
    made.add_argument("--source", type=Path, help="checkout of the current LightLLM")
    made.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "lightllm-otel-tracing")
    made.add_argument("--out", type=Path, default=outcome.RESULTS)
    return made


def main() -> None:
    arguments = parser().parse_args()
    if arguments.cpu:
        arguments.shape = "tiny"
    merged = [json.loads(path.read_text()) for path in arguments.merge]
    rows = together(merged)
    arguments.out.mkdir(parents=True, exist_ok=True)

    def keep(row: dict[str, Any]) -> None:
        rows.append({"lane": arguments.fast_path, **row})
        outcome.write("tracing", summarise(rows), rows, arguments.out, merged)

    if arguments.nothing:
        outcome.write("tracing", summarise(rows), rows, arguments.out, merged, measured=False)
    else:
        arguments.work.mkdir(parents=True, exist_ok=True)
        model = checkpoint_of(arguments.work, arguments.shape, arguments.cpu)
        parts = arguments.part or PARTS_OF_RUN
        with tempfile.TemporaryDirectory(dir=arguments.work) as work:
            for part, run in zip(PARTS_OF_RUN, (check_links, measure)):
                if part in parts:
                    run(arguments, model, Path(work), keep)
    print(json.dumps(summarise(rows), indent=1))


if __name__ == "__main__":
    main()
