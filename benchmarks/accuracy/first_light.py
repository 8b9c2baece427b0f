"""Every operator's GPU time in both LightLLM versions, beside what a Python timer says, and the same tokens with and without.

    python benchmarks/accuracy/first_light.py --source CHECKOUT --out benchmarks/results

Needs a GPU, lightllm-otel installed in this Python, LightLLM's packages, and for NEW a checkout.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import _paths  # noqa: F401 - puts the other folders on sys.path
import checkpoint
import fixed_batch
import outcome
from server import Server

from lightllm_otel.records import layout
from lightllm_otel.records.reader import RingReader
from lightllm_otel.records.vocabulary import Mode, Operator, Phase

BYTES_OF_RING_MIB = "64"
OLD_FLAGS = ["--max_total_token_num", "24000"]
NEW_FLAGS = ["--max_total_token_num", "24000", "--mem_fraction", "0.2"]


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to run a server. ``plain`` servers have neither the plugin nor the Python timer."""

    version: str
    flags: tuple[str, ...] = ()
    name: str = ""


CASES = (
    Case("old", (), "OLD, eager"),
    Case("new", ("--disable_cudagraph",), "NEW, eager"),
    Case("new", (), "NEW, graphs"),
)


class Instrumented:
    """A server with the plugin at every step, and a Python timer inside the same calls; ``blocking`` as it says."""

    def __init__(self, case: Case, model: Path, work: Path, arguments: argparse.Namespace, kind: str) -> None:
        self.kind = kind
        self.folder = work / f"{case.version}-{'-'.join(case.flags)}-{kind}".replace("--", "")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.timer_file = self.folder / "python_timer.json"
        env = {}
        if kind.startswith("stock"):
            pass
        else:
            env = {
                "LIGHTLLM_OTEL": "1",
                "LIGHTLLM_OTEL_DIR": str(self.folder / "otel"),
                "LIGHTLLM_OTEL_SAMPLE_EVERY": "1",
                "LIGHTLLM_OTEL_RING_MIB": BYTES_OF_RING_MIB,
                "PYTHON_TIMER": str(self.timer_file),
                "PYTHONPATH": os.pathsep.join(
                    [str(Path(__file__).with_name("python_timer")), os.environ.get("PYTHONPATH", "")]
                ).rstrip(":"),
            }
        if kind == "blocking":
            env["CUDA_LAUNCH_BLOCKING"] = "1"
        if case.version == "new":
            # With recent torch its tensor cache never finds a buffer free: a forward would keep all activations.
            env["DISABLE_GPU_TENSOR_CACHE"] = "1"
        sizes = [] if arguments.cpu else (OLD_FLAGS if case.version == "old" else NEW_FLAGS)
        flags = [*sizes, *case.flags]
        self.arguments = arguments
        self.server = Server(
            model, case.version, cpu=arguments.cpu, source=arguments.source if case.version == "new" else None, env=env,
            arguments=flags,
            log=self.folder / "server.log", start_timeout=300,
        )  # fmt: skip
        self._ring: RingReader | None = None

    def run(self, output_tokens: int, repetition: int) -> tuple[list[tuple[int, ...]], float]:
        """The same prompts for every server, others in every repetition."""
        return fixed_batch.generate(
            self.server,
            self.arguments.requests,
            self.arguments.input_tokens,
            output_tokens,
            first=(repetition + 1) * self.arguments.requests,
        )

    def steps(self) -> list[tuple[np.void, np.ndarray]]:
        """What was measured since the last call."""
        if self._ring is None:
            self._ring = RingReader(next((self.folder / "otel").glob("*/rank-0.ring")))
        time.sleep(1.2)  # read on the idle tick; at most a second old
        return layout.steps_in(self._ring.read())

    def clock(self) -> dict[str, Any]:
        """What the model process found out about itself and its clock."""
        assert self._ring is not None
        header = self._ring.header
        return {
            "clock_quantum_us": 1e6 * float(header["clock_quantum"]),
            "boundary_cost_us": 1e6 * float(header["boundary_cost"]),
            "dropped": header["dropped"].tolist(), "errors": header["errors"].tolist(),
            "hook_seconds": float(header["hook_seconds"]), "facts": self._ring.facts(),
        }  # fmt: skip

    def python_totals(self) -> dict[str, Any]:
        return json.loads(self.timer_file.read_text())


@contextlib.contextmanager
def python_timer_armed(server: Instrumented) -> Iterator[None]:
    armed = Path(f"{server.timer_file}.armed")
    armed.touch()
    time.sleep(1.1)
    yield
    time.sleep(1.1)
    armed.unlink()


def operator_rows(
    steps: list[tuple[np.void, np.ndarray]], case: Case, kind: str, repetition: int
) -> list[dict[str, Any]]:
    """One row per phase and operator: calls, seconds, share of the steps' time, and what was starved."""
    rows = []
    for phase in Phase:
        chosen = [(step, intervals) for step, intervals in steps if step["phase"] == phase.code and len(intervals)]
        if not chosen:
            continue
        whole = sum(float(step["seconds"]) for step, _ in chosen)
        intervals = np.concatenate([intervals for _, intervals in chosen])
        for operator in Operator:
            own = intervals[intervals["operator"] == operator.code]
            if not len(own):
                continue
            seconds = own["seconds"].astype(float)
            rows.append({
                "case": case.name, "kind": kind, "repetition": repetition, "phase": phase.value,
                "mode": Mode.of(int(chosen[0][0]["mode"])).value, "operator": operator.value,
                "calls": len(own), "mean_us": round(1e6 * seconds.mean(), 3),
                "median_us": round(1e6 * float(np.median(seconds)), 3), "min_us": round(1e6 * seconds.min(), 3),
                "share_percent": round(100 * seconds.sum() / whole, 3),
                "starved_percent": round(100 * float((own["flags"] & layout.STARVED).astype(bool).mean()), 1),
            })  # fmt: skip
    return rows


def step_rows(steps: list[tuple[np.void, np.ndarray]], case: Case, kind: str, repetition: int) -> list[dict[str, Any]]:
    """One row per phase and mode: whole steps, closure of the sampled ones, what was subtracted."""
    rows = []
    for phase in Phase:
        for mode in Mode:
            chosen = [step for step, _ in steps if step["phase"] == phase.code and step["mode"] == mode.code]
            if not chosen:
                continue
            closures = [
                100 * float(s["closure_seconds"]) / float(s["seconds"]) for s in chosen if s["flags"] & layout.SAMPLED
            ]
            rows.append({
                "case": case.name, "kind": kind, "repetition": repetition, "phase": phase.value, "mode": mode.value,
                "steps": len(chosen), "sampled": len(closures),
                "step_ms_median": round(1e3 * float(np.median([s["seconds"] for s in chosen])), 4),
                "closure_percent_worst": round(min(closures, default=100.0), 4),
                "closure_percent_median": round(float(np.median(closures)), 4) if closures else None,
                "overhead_ms_median": round(1e3 * float(np.median([s["overhead_seconds"] for s in chosen])), 4),
                "idle_ms_median": round(1e3 * float(np.median([s["idle_seconds"] for s in chosen])), 4),
                "tokens": sum(int(s["tokens"]) for s in chosen),
            })  # fmt: skip
    return rows


def measure(case: Case, model: Path, work: Path, arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], bool]:
    """All repetitions of one case; whether stock equals stock, and the instrumented server equals both."""
    kinds = ["stock", "stock again", "otel"] + (["blocking"] if "graphs" not in case.name else [])
    servers = [Instrumented(case, model, work, arguments, kind) for kind in kinds]
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        for each in servers:
            began = time.perf_counter()
            each.server.start()
            stack.callback(each.server.stop)
            if case.version == "old":  # OLD looks for free ports before it takes them: one after the other
                each.server.wait_healthy()
            print(f"{case.name} {each.kind} started {time.perf_counter() - began:.1f} s", flush=True)
        for each in servers:
            each.server.wait_healthy()
        for each in servers:
            each.run(8, -1)  # kernels are compiled and tuned in the first batch of each shape
            if not each.kind.startswith("stock"):
                each.steps()
        tokens: dict[tuple[str, int], Any] = {}
        for repetition in range(arguments.repetitions):
            for each in servers:
                output = arguments.output_tokens
                if each.kind.startswith("stock"):
                    tokens[each.kind, repetition], seconds = each.run(output, repetition)
                else:
                    with python_timer_armed(each):
                        tokens[each.kind, repetition], seconds = each.run(output, repetition)
                    steps = each.steps()
                    rows += operator_rows(steps, case, each.kind, repetition)
                    rows += step_rows(steps, case, each.kind, repetition)
                rows.append(
                    {
                        "case": case.name,
                        "kind": each.kind,
                        "repetition": repetition,
                        "requests": arguments.requests,
                        "input_tokens": arguments.input_tokens,
                        "output_tokens": output,
                        "seconds": round(seconds, 4),
                    }
                )
        for each in servers[2:]:
            rows.append({"case": case.name, "kind": each.kind, **each.clock()})
            rows += python_rows(each, case)
    for (kind, repetition), answer in tokens.items():
        rows.append(
            {
                "case": case.name,
                "kind": kind,
                "repetition": repetition,
                "same_tokens_as_stock": answer == tokens["stock", repetition],
                "tokens_compared": sum(map(len, answer)),
            }
        )
    identical = all(row["same_tokens_as_stock"] for row in rows if "same_tokens_as_stock" in row)
    return rows, identical


def python_rows(server: Instrumented, case: Case) -> list[dict[str, Any]]:
    """What the Python timer inside the same calls added up, over all repetitions."""
    return [
        {"case": case.name, "kind": server.kind, "phase": phase, "operator": operator, "python_calls": calls,
         "python_mean_us": round(1e6 * seconds / calls, 3)}
        for phase, operators in server.python_totals().items()
        for operator, (calls, seconds) in operators.items()
    ]  # fmt: skip


def summarise(rows: list[dict[str, Any]], identical: dict[str, bool]) -> dict[str, Any]:
    """The figures that the README claims."""
    sampled = [row for row in rows if row.get("sampled")]
    worst = min((row["closure_percent_worst"] for row in sampled), default=None)
    operators = [row for row in rows if "share_percent" in row]
    table: dict[str, Any] = {}
    for row in operators:
        if row["kind"] == "otel":
            cell = table.setdefault(f"{row['case']}, {row['phase']}", {}).setdefault(row["operator"], {})
            cell.setdefault("mean_us", []).append(row["mean_us"])
            cell.setdefault("share_percent", []).append(row["share_percent"])
    for phase in table.values():
        for cell in phase.values():
            for name, values in cell.items():
                cell[name] = round(float(np.median(values)), 2)
    for row in rows:
        if "python_mean_us" in row:
            cell = table.get(f"{row['case']}, {row['phase']}", {}).get(row["operator"])
            if cell is not None:
                name = "python_timer_us" if row["kind"] == "otel" else "python_timer_launch_blocking_us"
                cell[name] = round(row["python_mean_us"], 2)
    return {
        "step_closure_percent": worst,
        "outputs_identical": all(identical.values()),
        "outputs_identical_by_case": identical,
        "negative_intervals": int(sum(row["min_us"] < 0 for row in operators)),
        "operators": table,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES], help="default: all")
    parser.add_argument("--source", type=Path, help="a checkout of the current LightLLM")
    parser.add_argument("--shape", default="llama-7b")
    parser.add_argument("--cpu", action="store_true", help="only to try this script: times mean nothing")
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--input-tokens", type=int, default=1024)
    parser.add_argument("--output-tokens", type=int, default=100)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("/tmp/first-light"))
    parser.add_argument("--out", type=Path, default=outcome.RESULTS)
    parser.add_argument("--merge", nargs="*", type=Path, default=[], help="earlier partial results to add")
    arguments = parser.parse_args()
    # A server that outlives this script keeps its GPU memory: end by unwinding, also when a time limit ends us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    model = arguments.work / arguments.shape
    if not (model / "config.json").exists():
        checkpoint.write(model, checkpoint.SHAPES[arguments.shape], "float16")
    rows: list[dict[str, Any]] = []
    identical: dict[str, bool] = {}
    merged = [json.loads(part.read_text()) for part in arguments.merge]
    for earlier in merged:
        rows += earlier["rows"]
        identical.update(earlier["summary"]["outputs_identical_by_case"])
    for case in CASES:
        if arguments.case is None or case.name in arguments.case:
            more, identical[case.name] = measure(case, model, arguments.work, arguments)
            rows += more
            outcome.write("first_light", summarise(rows, identical), rows, arguments.out, merged)
            print(case.name, "identical" if identical[case.name] else "DIFFERENT", flush=True)
    print(json.dumps(summarise(rows, identical), indent=1, default=float))


if __name__ == "__main__":
    main()
