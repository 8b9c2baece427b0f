"""What lightllm-otel costs: throughput, latency, start-up, memory; and what other ways to operator times would cost.

    python benchmarks/cost/overhead.py --source CHECKOUT --out benchmarks/results
    python benchmarks/cost/overhead.py --nothing --merge benchmarks/results/overhead.json FOLDER/overhead-*.json

Needs a GPU, lightllm-otel installed in this Python, LightLLM's packages and a checkout of the current LightLLM. Each
part runs in processes of its own:

- default: one model process, in which the plugin is switched on and off every 8 steps; pairing.py says how steps are
  compared. Goes on until the interval of confidence is narrow enough.
- paired: the same with other settings. Also whether any token differs, and what a step's cost consists of.
- moe: the same with a mixture of experts.
- alternatives: events around operators, CUDA_LAUNCH_BLOCKING and torch.profiler, compared in the same way.
- servers: a stock and an instrumented server under the same load in turn; start-up and GPU memory.
- tp2: start-up, instrumented graphs and tokens with two ranks.

A LightLLM with two infer threads (since v1.1.0) is measured by served.py, in its servers' own threads. Its rows are taken in
with --merge, and stand apart by host.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import _paths  # noqa: F401 - puts the other folders on sys.path
import outcome
import workers
from overhead_claims import MOE_SHAPE, PARTS, served_first, summarise, together, with_again

Rows = list[dict[str, Any]]


# Running ---------------------------------------------------------------------------------------------------------------


def child(arguments: argparse.Namespace) -> None:
    """One part, in the process that was started for it."""
    import alternatives
    import plugin_cost
    import serving

    sizes = plugin_cost.TINY if arguments.cpu else plugin_cost.Sizes()
    if arguments.child == "blocking":
        alternatives.serve_passes(arguments, sizes)
        return
    keep = workers.RowsFile(arguments.rows).keep
    work = arguments.rows.parent
    if arguments.child == "default":
        plugin_cost.measure_default(
            arguments, sizes, work / "otel", keep, arguments.seconds, 1e9 if arguments.cpu else plugin_cost.HALF_WIDTH
        )
    elif arguments.child == "paired":
        cases = plugin_cost.dense_cases(sizes, arguments.scale)
        plugin_cost.measure(arguments, sizes, cases, arguments.shape, work / "otel", keep, details=True)
    elif arguments.child == "moe":
        cases = plugin_cost.moe_cases(sizes, arguments.scale)
        shape = "tiny-moe" if arguments.cpu else MOE_SHAPE
        plugin_cost.measure(arguments, sizes, cases, shape, work / "otel", keep, details=False)
    elif arguments.child == "alternatives":
        alternatives.measure(arguments, sizes, keep)
    elif arguments.child == "servers":
        serving.measure(arguments, work, keep)
    else:
        serving.measure_tp2(arguments, work, keep)


def run_part(arguments: argparse.Namespace, part: str, limit: float) -> Rows:
    """Its rows; also those of a part that did not come to its end, and why."""
    arguments.work.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{part}-", dir=arguments.work))
    rows_file = folder / "rows.json"
    command = [__file__, "--child", part, "--rows", str(rows_file), "--work", str(arguments.work)]
    command += ["--shape", arguments.shape, "--scale", str(arguments.scale), "--nccl-port", str(arguments.nccl_port)]
    command += ["--rounds", str(arguments.rounds), "--starts", str(arguments.starts)]
    command += ["--requests", str(arguments.requests), "--seconds", str(arguments.seconds)]
    command += ["--source", str(arguments.source)] if arguments.source else []
    command += ["--cpu"] if arguments.cpu else []
    problem = workers.run(command, arguments.cpu, limit)
    rows: Rows = json.loads(rows_file.read_text()) if rows_file.exists() else []
    if problem:
        rows.append({"kind": "problem", "part": part, "problem": f"{part}: {problem}"})
        for log in sorted(folder.rglob("*.log")):
            print(log.name, log.read_text(errors="replace")[-3000:], flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    return [{"part": part, "host": arguments.host, **row} for row in rows]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    made.add_argument("--part", action="append", choices=PARTS, help="default: all")
    made.add_argument("--source", type=Path, help="a checkout of the current LightLLM")
    made.add_argument("--host", default="fc72ffab", help="what every row calls that LightLLM")
    made.add_argument("--shape", default="llama-7b", help="of every part but moe and tp2")
    made.add_argument("--cpu", action="store_true", help="only to try this script: times mean nothing")
    made.add_argument("--scale", type=float, default=1.0, help="how many passes, beside the usual number")
    made.add_argument("--rounds", type=int, default=10, help="of load for each server")
    made.add_argument("--requests", type=int, default=20, help="at a time, of load")
    made.add_argument("--starts", type=int, default=2, help="of each server")
    made.add_argument("--limit", type=float, default=300.0, help="seconds that one part may take")
    made.add_argument("--seconds", type=float, default=900.0, help="that the part default may take, at most")
    made.add_argument("--nccl-port", type=int, default=28765)
    made.add_argument("--work", type=Path, default=Path("/dev/shm/overhead"), help="checkpoints are kept here")
    made.add_argument("--out", type=Path, default=outcome.RESULTS)
    made.add_argument(
        "--merge",
        nargs="*",
        type=Path,
        default=[],
        help="earlier partial results: of each part the last counts, or what is run now",
    )
    made.add_argument(
        "--again",
        nargs="*",
        type=Path,
        default=[],
        help="results of the parts default and paired from other machines, which stand apart from what is claimed",
    )
    made.add_argument("--nothing", action="store_true", help="measure nothing: put the results of --merge together")
    made.add_argument("--child", choices=(*PARTS, "blocking"), help=argparse.SUPPRESS)
    made.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    made.add_argument("--pipe", type=int, help=argparse.SUPPRESS)
    made.add_argument("--eager", action="store_true", help=argparse.SUPPRESS)
    return made


def main() -> None:
    arguments = parser().parse_args()
    # What outlives this script keeps its GPU memory: end by unwinding, also when a time limit ends us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if arguments.cpu:
        arguments.shape = "tiny"
    if arguments.child:
        child(arguments)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    merged = [json.loads(path.read_text()) for path in arguments.merge]
    parts = () if arguments.nothing else arguments.part or PARTS
    rows = together(merged, parts)
    for path in arguments.again:
        merged.append(json.loads(path.read_text()))
        rows = with_again(rows, merged[-1])
    for part in parts:
        rows += run_part(arguments, part, arguments.limit)
        outcome.write("overhead", summarise(rows), rows, arguments.out, merged)
    summary = summarise(rows)
    if arguments.nothing:
        outcome.write("overhead", summary, rows, arguments.out, served_first(merged), measured=False)
    print(json.dumps(summary, indent=1, default=float))
    sys.exit(bool(summary["problems"]))


if __name__ == "__main__":
    main()
