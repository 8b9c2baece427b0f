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
import threading
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
from workers import checkpoint_of, say

STEP_LISTS = Path(__file__).with_name("step_lists")  # a sitecustomize for the model process
Rows = list[dict[str, Any]]
SHARES = (1, 10, 100)  # percent of the requests
NONE = 0  # on the server that has traces
PLAIN = -1  # on the server that has none
LAUNCHER = [sys.executable, "-m", "lightllm_otel", "run", "--"]
PARTS_OF_RUN = ("links", "rounds")
# All requests in one graph: without, a step is bound by the host, and rounds differ by a tenth.
FLAGS = ["--max_total_token_num", "24000", "--mem_fraction", "0.2", "--graph_max_batch_size", "64"]
SPAN_DELAY_MS, QUEUE = "1000", "65536"
DROPPED = "spans_dropped_"
SETTLE_SECONDS = 5.0
MOST_DIFFERENCE = 0.01  # of a request's span, between it and its children
TARGET_PERCENT = 0.5  # at 10 % traced
RESAMPLES = 4000
PARTS = {"lightllm.tokenise", "lightllm.queue", "lightllm.prefill", "lightllm.decode", "lightllm.tail"}


# Receiver --------------------------------------------------------------------------------------------------------------


class Receiver:
    """Takes everything, and reads nothing before it is asked to."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/v1/traces":
                    receiver.bodies.append(body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *words: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def environ(self) -> dict[str, str]:
        port = self._server.server_address[1]
        return {
            "OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "OTEL_TRACES_SAMPLER": "parentbased_always_off", "OTEL_METRICS_EXPORTER": "none",
            "OTEL_BSP_SCHEDULE_DELAY": SPAN_DELAY_MS, "OTEL_BSP_MAX_QUEUE_SIZE": QUEUE,
        }  # fmt: skip

    def spans(self) -> list[dict[str, Any]]:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        return [
            read(span)
            for body in self.bodies
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


def read(span: Any) -> dict[str, Any]:
    """A span as plain values, with the attributes that are looked at."""
    wanted = ("lightllm.request.id", "lightllm.step.number", "lightllm.phase")
    attributes = {each.key: each.value for each in span.attributes if each.key in wanted}
    return {
        "name": span.name, "trace": span.trace_id.hex(), "span": span.span_id.hex(), "parent": span.parent_span_id.hex(),
        "start": span.start_time_unix_nano, "end": span.end_time_unix_nano, "server": span.kind == 2,
        "links": [link.span_id.hex() for link in span.links],
        "request": attributes["lightllm.request.id"].string_value if "lightllm.request.id" in attributes else None,
        "step": attributes["lightllm.step.number"].int_value if "lightllm.step.number" in attributes else None,
    }  # fmt: skip


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


# What came of it -------------------------------------------------------------------------------------------------------


def complete(request: Mapping[str, Any], parts: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a request has all of its parts, one after the other, which add up to it."""
    ordered = sorted(parts, key=lambda part: part["start"])
    whole = request["end"] - request["start"]
    return (
        {part["name"] for part in ordered} == PARTS
        and all(before["end"] == after["start"] for before, after in zip(ordered, ordered[1:]))
        and abs(sum(part["end"] - part["start"] for part in ordered) - whole) <= MOST_DIFFERENCE * whole
    )


def completeness(spans: Iterable[Mapping[str, Any]], parents: Iterable[str]) -> dict[str, int]:
    """Of the requests that were traced: how many have a trace, under the caller's span, and how many a complete one."""
    children: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    servers: dict[str, Mapping[str, Any]] = {}
    for span in spans:
        children[span["parent"]].append(span)
        if span["server"]:
            servers[span["parent"]] = span
    wanted = list(parents)
    found = [servers[parent] for parent in wanted if parent in servers]
    whole = [request for request in found if complete(request, children[request["span"]])]
    return {
        "traced": len(wanted),
        "found": len(found),
        "complete": len(whole),
        "foreign": len(set(servers) - set(wanted)),
    }


def links(spans: Iterable[Mapping[str, Any]], lists: list[list[int]]) -> dict[str, int]:
    """Step spans against LightLLM's own list of requests in each step; the n-th line is step n."""
    every = list(spans)
    numbers = {span["span"]: int(span["request"]) for span in every if span["server"]}
    steps = [span for span in every if span["step"] is not None and span["name"].startswith("lightllm.step ")]
    right = linked_in_all = 0
    for step in steps:
        linked = {numbers[link] for link in step["links"] if link in numbers}
        listed = set(lists[step["step"]]) if step["step"] < len(lists) else set()
        linked_in_all += len(linked)
        right += len(linked) == len(step["links"]) and linked == listed & set(numbers.values())
    return {"steps": len(steps), "right": right, "linked": linked_in_all}


def loss(rows: Iterable[Mapping[str, Any]], share: int, against: int = PLAIN) -> dict[str, Any]:
    """Percent of the tokens per second that are lost with so many percent traced, over blocks, with an interval."""
    found = change(rows, share, against, "tokens_per_second")
    low, high = found["ci95"] or (None, None)
    return {
        "throughput_loss_percent": None if low is None else -found["percent"], "ci95": None if low is None else [-high, -low],
        "blocks": found["blocks"],
    }  # fmt: skip


def change(rows: Iterable[Mapping[str, Any]], share: int, against: int, of: str) -> dict[str, Any]:
    """By how many percent ``of`` is larger with so many percent traced: the mean over blocks, and its 95 % interval."""
    blocks: dict[Any, dict[int, float]] = defaultdict(dict)
    for row in rows:
        if row.get(of):
            blocks[row.get("lane", 0), row["block"]][row["share_percent"]] = row[of]
    pairs = np.array([(block[against], block[share]) for block in blocks.values() if {against, share} <= set(block)])
    if not len(pairs):
        return {"percent": None, "ci95": None, "blocks": 0}
    more = 100 * (pairs[:, 1] / pairs[:, 0] - 1)
    random = np.random.default_rng(0)
    drawn = more[random.integers(0, len(more), (RESAMPLES, len(more)))].mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {
        "percent": round(float(more.mean()), 3), "ci95": [round(float(low), 3), round(float(high), 3)], "blocks": len(more),
    }  # fmt: skip


def summarise(rows: Rows) -> dict[str, Any]:
    """Everything from the rows alone; None for what is not measured yet."""
    rounds = [row for row in rows if row.get("kind") == "round"]
    traces, checked = (total(rows, kind) for kind in ("traces", "links"))
    losses = {str(share): loss(rounds, share) for share in SHARES}
    within = {str(share): loss(rounds, share, NONE) for share in SHARES}
    cpu = {str(share): change(rounds, share, NONE, "cpu_seconds") for share in SHARES}
    return {
        "throughput_loss_percent": {share: each["throughput_loss_percent"] for share, each in losses.items()},
        "throughput_loss_percent_ci95": {share: each["ci95"] for share, each in losses.items()},
        "throughput_loss_percent_within": {share: each["throughput_loss_percent"] for share, each in within.items()},
        "throughput_loss_percent_within_ci95": {share: each["ci95"] for share, each in within.items()},
        "cpu_increase_percent": {share: each["percent"] for share, each in cpu.items()},
        "cpu_increase_percent_ci95": {share: each["ci95"] for share, each in cpu.items()},
        "blocks": min(each["blocks"] for each in losses.values()),
        "target_percent_at_10": TARGET_PERCENT,
        "complete_traces_percent": percent(traces.get("complete"), traces.get("traced")),
        "traced_requests": traces.get("traced"),
        "right_step_links_percent": percent(checked.get("right"), checked.get("steps")),
        "checked_steps": checked.get("steps"), "checked_links": checked.get("linked"),
        "errors": traces.get("errors"), "spans_dropped": traces.get("spans_dropped"),
        "spans_dropped_by_reason": {
            name.removeprefix(DROPPED): count for name, count in traces.items() if name.startswith(DROPPED) and name != DROPPED
        },
    }  # fmt: skip


def total(rows: Rows, kind: str) -> dict[str, Any]:
    """The sums of all rows of a kind; empty where there is none."""
    found: dict[str, Any] = defaultdict(int)
    for row in rows:
        if row.get("kind") == kind:
            for name, value in row.items():
                if name not in ("kind", "lane"):
                    found[name] += value
    return found


def percent(part: int | None, whole: int | None) -> float | None:
    return None if part is None or not whole else round(100 * part / whole, 3)


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
