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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import _paths  # noqa: F401 - puts the other folders on sys.path
import outcome
import served_overhead
import workers
from pairing import (
    Estimate,
    Sample,
    added,
    added_beyond,
    latency_increase,
    throughput_loss,
    with_rare_steps,
)

PARTS = ("default", "paired", "moe", "alternatives", "servers", "tp2")
AGAIN = "again"  # runs of these parts on other machines
REPEATED = ("default", "paired")
SERVED = "served"  # rows of served.py
MOE_SHAPE = "qwen3-moe"
Rows = list[dict[str, Any]]


# What is claimed -------------------------------------------------------------------------------------------------------


def summarise(rows: Rows) -> dict[str, Any]:
    """Everything from the rows alone, so that results of several runs can be put together."""
    served, rows = ([row for row in rows if (row.get("part") == SERVED) is wanted] for wanted in (True, False))
    everything, repeated = rows, [row for row in rows if row.get("part") == AGAIN]
    rows = [row for row in rows if row.get("part") != AGAIN]
    samples = _samples(rows)
    summary: dict[str, Any] = {case: _case(case, samples, rows) for case in samples}
    summary["servers"] = _servers(rows)
    if repeated:
        summary["again"] = [
            _again([row for row in repeated if row["run"] == run]) for run in sorted({row["run"] for row in repeated})
        ]
    if served:
        summary["hosts"] = served_overhead.summarise(served)
    tokens = [row for row in _of("tokens", rows) if row["setting"] != "off"]
    tp2_tokens = [row for row in _of("tp2_tokens", rows) if row["server"] == "instrumented"]
    stock = same_as_stock(rows)
    compared = [row["identical"] for row in tokens] + [row["same_as_stock"] for row in tp2_tokens] + [*stock.values()]
    return {
        **summary,
        **_parts_of_a_step(samples),
        "outputs_identical": all(compared) if compared else None,
        "tokens_compared": sum(row["tokens_compared"] for row in (*tokens, *tp2_tokens)),
        "tokens_compared_with_stock": sum(row["tokens_compared"] for row in tokens if _batch_of(row) in stock)
        + sum(row["tokens_compared"] for row in tp2_tokens),
        "stock_identical_to_itself": _all(
            [len(digests) == 1 for digests in _stock_digests(rows).values()]
            + [row["identical"] for row in _of("tokens", rows) if row["setting"] == "off"]
            + [row["same_as_stock"] for row in _of("tp2_tokens", rows) if row["server"] == "stock again"]
        ),
        "hook_ns": _last("hook", "hook_ns", rows),
        "harvest_us": {
            f"{kind}": row[f"{kind}_us_median"]
            for setting, kind in (("default", "unsampled"), ("every_step", "sampled"))
            for row in _of("harvest", rows)
            if row["setting"] == setting and f"{kind}_us_median" in row
        },
        "critical_path_us": _critical_path(rows),
        "memory_growth_kib": {
            row["setting"]: {"anonymous": row["anonymous_growth_kib"], "steps": row["steps"]}
            for row in _of("harvest", rows)
        },
        "resident_mib": _resident(rows),
        "startup": {f"tp{tp}": _startup(tp, rows) for tp in (1, 2)},
        "twin_mib": {f"tp{tp}": _graph_mib(tp, rows) for tp in (1, 2)},
        "errors": sum(sum(row["errors"]) for row in (*_of("plugin", everything), *_of("ring", everything))),
        "dropped": sum(
            count
            for row in (*_of("plugin", everything), *_of("ring", everything))
            for reason, count in row["dropped"].items()
            if reason != "control"  # what live control lets go when it switches off
        ),
        "problems": [row["problem"] for row in _of("problem", everything)],
    }


def _samples(rows: Rows) -> dict[str, Sample]:
    cells = _of("cell", rows)
    return {
        case: Sample.of_rows([row for row in cells if row["case"] == case])
        for case in dict.fromkeys(row["case"] for row in cells)
    }


def together(merged: Sequence[dict[str, Any]], wanted: Sequence[str]) -> Rows:
    """Rows of earlier files; the last that has a part counts for it, and none for a part that is measured now."""
    of_part: dict[str, Rows] = {}
    of_host: dict[str, Rows] = {}
    for earlier in merged:
        for part in {row["part"] for row in earlier["rows"] if "part" in row}:
            of_part[part] = [row for row in earlier["rows"] if row.get("part") == part]
        served = [row for row in earlier["rows"] if row.get("part") == SERVED]
        for host in dict.fromkeys(row["host"] for row in served):
            of_host[host] = [row for row in served if row["host"] == host]
    rows = [row for part in (*PARTS, AGAIN) if part not in wanted for row in of_part.get(part, [])]
    return rows + [row for own in of_host.values() for row in own]


def served_first(merged: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Earlier files, those with nothing but served.py's rows first: date and machine of the whole are those of the last."""
    own = [any(row.get("part", SERVED) != SERVED for row in earlier["rows"]) for earlier in merged]
    return [each for wanted in (False, True) for each, has_own in zip(merged, own) if has_own is wanted]


def with_again(rows: Rows, later: dict[str, Any]) -> Rows:
    """``rows`` and those of another run of the parts that are repeated, which stand apart from all others."""
    run = max((row["run"] for row in rows if row.get("part") == AGAIN), default=0) + 1
    about = {"part": AGAIN, "run": run, "date": later["date"], "commit": later["commit"]}
    return rows + [{**row, **about, "of": row["part"]} for row in later["rows"] if row.get("part") in REPEATED]


def _again(rows: Rows) -> dict[str, Any]:
    """Of one run: its cases, and how the plugin made each of its processes grow."""
    samples = _samples(rows)
    return {
        "date": rows[0]["date"], "commit": rows[0]["commit"],
        **{case: _case(case, samples, rows) for case in samples},
        "outputs_identical": _all([row["identical"] for row in _of("tokens", rows)]),
        "hook_ns": _last("hook", "hook_ns", rows), "critical_path_us": _critical_path(rows),
        "resident_mib": {row["of"]: _with_total(row["resident_mib"]) for row in _of("plugin", rows)},
        "compiler_mib": {
            row["of"]: sum(row["compiler_mib"].values()) for row in _of("plugin", rows) if "compiler_mib" in row
        },
    }  # fmt: skip


def _of(kind: str, rows: Rows) -> Rows:
    return [row for row in rows if row.get("kind") == kind]


def _last(kind: str, name: str, rows: Rows) -> Any:
    found = [row[name] for row in _of(kind, rows) if row["part"] in ("paired", AGAIN)]
    return found[-1] if found else None


def _resident(rows: Rows) -> dict[str, float] | None:
    parts = _last("plugin", "resident_mib", rows)
    return None if parts is None else _with_total(parts)


def _with_total(parts: dict[str, float]) -> dict[str, float]:
    """CuPy's own module is apart where it was imported before the rest."""
    return {**parts, "total": round(sum(value for name, value in parts.items() if name != "cupy"), 2)}


def _all(values: Sequence[bool]) -> bool | None:
    return all(values) if values else None


def _case(case: str, samples: dict[str, Sample], rows: Rows) -> dict[str, Any]:
    sample = samples[case]
    loss, loss_interval = _loss(case, samples, rows).rounded()
    every = Sample.of_rows([row for row in _of("cell", rows) if row["case"] == case], kept=False)
    plain, plain_interval = throughput_loss(every).rounded()
    more, more_interval = added(sample).rounded(2)
    on, off = (float(each[0]) for each in sample.means())
    tails = [row for row in _of("tail", rows) if row["case"] == case]
    last = {name: value for name, value in tails[-1].items() if name.startswith("itl_p99")} if tails else {}
    return {
        "throughput_loss_percent": loss, "throughput_loss_percent_ci95": loss_interval, **last,
        "throughput_loss_percent_of_all_pairs": plain, "throughput_loss_percent_of_all_pairs_ci95": plain_interval,
        "pairs": int(sample.pairs.sum()), "off_us": round(off, 2), "on_us": round(on, 2),
        "added_us": more, "added_us_ci95": more_interval,
    }  # fmt: skip


def _loss(case: str, samples: dict[str, Sample], rows: Rows) -> Estimate:
    """Where few steps are sampled, those few are among the pairs that are left out: their cost comes from elsewhere."""
    kind = "_moe" if case.endswith("_moe") else ""
    pair = (f"graph_every_step{kind}", "graph_steps_only")
    if case.startswith("eager"):
        pair = ("eager_decode_every_step", "eager_steps_only")
    often, never = map(samples.get, pair)
    shares = [
        row["sampled_percent"] / 100 for row in _of("case", rows) if row["case"] == case and "sampled_percent" in row
    ]
    if shares and 0 < sum(shares) / len(shares) < 0.5 and often is not None and never is not None:
        return with_rare_steps(samples[case], sum(shares) / len(shares), often, never)
    return throughput_loss(samples[case])


def _parts_of_a_step(samples: dict[str, Sample]) -> dict[str, Any]:
    """Each step costs something, a sampled one some more; from both follows what the default should cost."""
    if "graph_steps_only" not in samples or "graph_every_step" not in samples:
        return {}
    steps, every = samples["graph_steps_only"], samples["graph_every_step"]
    fixed, fixed_interval = added(steps).rounded(2)
    marginal, marginal_interval = added_beyond(every, steps).rounded(2)
    off = float(steps.means()[1][0])
    expected = fixed + marginal / 64
    return {
        "fixed_cost_us": fixed, "fixed_cost_us_ci95": fixed_interval,
        "marginal_cost_us": marginal, "marginal_cost_us_ci95": marginal_interval,
        "default_from_its_parts_percent": round(100 * expected / (off + expected), 4),
    }  # fmt: skip


def _servers(rows: Rows) -> dict[str, Any]:
    """Rounds as pairs: the same number is the same prompts."""
    rounds = {
        kind: {row["round"]: row for row in _of("round", rows) if row["server"] == kind}
        for kind in ("stock", "instrumented")
    }
    both = sorted(set(rounds["stock"]) & set(rounds["instrumented"]))
    if len(both) < 2:
        return {}
    result: dict[str, Any] = {"rounds": len(both)}
    for name, wanted in (
        ("throughput_loss_percent", "seconds"), ("itl_p50_increase_percent", "itl_p50_us"),
        ("itl_mean_increase_percent", "itl_mean_us"), ("itl_p99_increase_percent", "itl_p99_us"),
    ):  # fmt: skip
        sample = Sample.of_rows([
            {"pairs": 1, "on_us": rounds["instrumented"][number][wanted], "off_us": rounds["stock"][number][wanted]}
            for number in both
        ], kept=False)  # fmt: skip
        estimate = (throughput_loss if wanted == "seconds" else latency_increase)(sample)
        result[name], result[f"{name}_ci95"] = estimate.rounded(3)
    metrics = [row for row in _of("metrics", rows) if row["tp"] == 1]
    result |= {name: value for name, value in metrics[-1].items() if name.startswith("lightllm")} if metrics else {}
    # Later starts follow a server that has just ended, whose memory may not be free yet.
    starts = [row for row in _of("start", rows) if row["tp"] == 1 and row["number"] == 0]
    result["gpu_mib"] = {row["server"]: row["gpu_mib"] for row in starts if row["gpu_mib"] is not None}
    return result


def _startup(tp: int, rows: Rows) -> dict[str, Any]:
    """The quickest start of each: the first one on a machine also compiles LightLLM's kernels."""
    seconds: dict[str, list[float]] = {}
    for row in _of("start", rows):
        if row["tp"] == tp:
            seconds.setdefault(row["server"].removesuffix(" again"), []).append(row["seconds"])
    if set(seconds) != {"stock", "instrumented"}:
        return {}
    stock, instrumented = min(seconds["stock"]), min(seconds["instrumented"])
    instrumented_graphs = [row["twins"] for row in _of("ring", rows) if row["tp"] == tp]
    return {
        "starts_of_each": min(map(len, seconds.values())),
        "stock_seconds": stock, "instrumented_seconds": instrumented,
        "added_seconds": round(instrumented - stock, 3),
        "added_percent": round(100 * (instrumented / stock - 1), 2),
        "twins_seconds": max((each.get("seconds", 0.0) for each in instrumented_graphs), default=None),
    }  # fmt: skip


def _graph_mib(tp: int, rows: Rows) -> Any:
    """Of one GPU: the largest rank's."""
    instrumented_graphs = [row["twins"] for row in _of("ring", rows) if row["tp"] == tp]
    if not instrumented_graphs:
        return None
    largest = max(instrumented_graphs, key=lambda each: int(each.get("bytes", 0)))
    return {
        "mib": round(largest.get("bytes", 0) / 2**20, 1), "graphs": len(largest.get("sizes", ())),
        "mib_each": round(largest.get("bytes", 0) / 2**20 / max(len(largest.get("sizes", ())), 1), 2),
        "state": largest.get("state"),
    }  # fmt: skip


def _batch_of(row: dict[str, Any]) -> tuple[Any, ...]:
    return row.get("shape"), row.get("mode"), row.get("batch")


def _stock_digests(rows: Rows) -> dict[tuple[Any, ...], set[str]]:
    found: dict[tuple[Any, ...], set[str]] = {}
    for row in _of("stock_tokens", rows):
        found.setdefault(_batch_of(row), set()).add(row["digest"])
    return found


def same_as_stock(rows: Rows) -> dict[tuple[Any, ...], bool]:
    """(shape, mode, batch) → whether every setting has the tokens of a process without the plugin; only what both have."""
    found: dict[tuple[Any, ...], bool] = {}
    digests = _stock_digests(rows)
    for row in _of("tokens", rows):
        at = _batch_of(row)
        if at in digests and "digest" in row:
            found[at] = found.get(at, True) and digests[at] == {row["digest"]}
    return found


def _critical_path(rows: Rows) -> dict[str, float]:
    """Beside LightLLM's bare forward."""
    found = {row["setting"]: row["entry_us_median"] for row in _of("critical_path", rows)}
    bare = found.pop("bare", None)
    return {} if bare is None else {setting: round(value - bare, 2) for setting, value in found.items()}


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
