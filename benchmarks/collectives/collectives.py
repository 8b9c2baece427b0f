"""All_reduce told apart: shares of a 70B model's operators by tensor parallelism, a slow rank named, bus bandwidth.

    python benchmarks/collectives/collectives.py --source CHECKOUT --out benchmarks/results

Needs a GPU, lightllm-otel with CuPy in this Python, LightLLM's packages and a checkout of the current LightLLM. Any number of
GPUs will do: where there are fewer than ranks, all ranks share one, as nodes of one group. Then two processes take turns on it
in slices of about 2 ms, so only long delays can be told; they are joined through NCCL's sockets. Ranks with a GPU each are joined
through the host's memory: a slow link is what is asked for here, links.py has the fast ones, and over sockets a call takes longer
after a long wait. With --own LightLLM's own all_reduce takes decode's calls, where sgl_kernel is there; those of prefill are too
large for it. A file with ranks on one GPU and one with a GPU each are put together by --merge.

For each tensor parallelism the ranks are processes that run the same passes (rank.py):

- shares: operators in prefill and in decode (CUDA graphs), all steps sampled.
- slow (two ranks, or one for each GPU): each rank in turn waits 5, 10 and 20 ms in two of its operators, before both
  all_reduce of a layer; in CUDA graphs and without. Passes without a delay lie between them.
- bandwidth: CUDA events of the benchmark's own around the same all_reduce, and nccl-tests' formula written out here.

The records are matched and split by the exporter's own code.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import _paths  # noqa: F401 - puts the other folders on sys.path
import outcome
import witness
import workers
from rank import AHEAD, DECODES, GRAPH, PREFILL, SEEN

from lightllm_otel.records import layout
from lightllm_otel.records.batch import RecordBatch
from lightllm_otel.records.vocabulary import Operator, Site, Unmatched
from lightllm_otel.reduce.collectives import (
    Collectives,
    has_transfer,
    last_arrival,
    last_rank_known,
    noise_seconds,
    transfer_and_wait,
)
from lightllm_otel.reduce.matching import Matched, Matching

SHAPE = "llama-70b-6-layers"
PARALLEL = (1, 2, 4)
OWN = "collectives-own"
PATIENCE_SECONDS = 20.0
SHIFTS = ("transfer_shift_percent", "transfer_shift_percent_with_noise", "transfer_noise_percent")
SOCKETS = {"NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1"}
HOST_MEMORY = {"NCCL_P2P_DISABLE": "1"}
Rows = list[dict[str, Any]]


# What the ranks left ---------------------------------------------------------------------------------------------------


class Run:
    """``left``: what each rank wrote beside its cells; ``steps``: of each rank; ``matched`` by number of the step."""

    def __init__(self, cells: Sequence[np.ndarray], left: Sequence[dict[str, Any]]) -> None:
        self.left = left
        self.steps = [layout.steps_in(each) for each in cells]
        batches = [RecordBatch.of_cells(each) for each in cells]
        self.matched: dict[int, Matched] = {}
        matching = Matching(self._keep)
        for rank, each in enumerate(left):
            matching.set_facts(rank, each["facts"])
        # By passes: the exporter would read as often, and hardly keeps more steps waiting than one has.
        for each in left[0]["passes"]:
            for rank, batch in enumerate(batches):
                numbers = batch.steps["number"]
                matching.add(rank, batch.only((numbers >= each["first"]) & (numbers <= each["last"])))
            matching.settle()
        self.unmatched = {reason.value: count for reason, count in matching.unmatched.items()}

    def _keep(self, matched: Matched) -> None:
        self.matched[int(matched.step["number"])] = matched

    @classmethod
    def read(cls, folder: Path, tp: int) -> Run:
        return cls(
            [np.load(folder / f"rank-{rank}.npy") for rank in range(tp)],
            [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(tp)],
        )

    def clock(self, mode: str) -> tuple[float, float]:
        """``(quantum, cost of a boundary)``, the largest of the ranks."""
        names = ("stamp_quantum", "stamp_cost") if mode == GRAPH else ("clock_quantum", "boundary_cost")
        quantum, cost = (max(float(each[name]) for each in self.left) for name in names)
        return quantum, cost

    def of(self, each: dict[str, Any]) -> list[Matched]:
        """The steps of a pass, as far as they were matched."""
        return [self.matched[number] for number in range(each["first"], each["last"] + 1) if number in self.matched]


def rows_of(run: Run, tp: int) -> Rows:
    rows: Rows = [{"kind": "unmatched", **run.unmatched}] if tp > 1 else []
    for number, each in enumerate(run.left[0]["passes"]):
        if each["kind"] == "share":
            rows += share_rows(run, each)
        elif each["kind"] in ("plain", "slow"):
            rows.append(pass_row(run, each))
        elif each["kind"] == "bandwidth" and tp > 1:
            calls = [row["own"] for row in run.left]
            rows.append({**bandwidth_row(run, each, calls), "pass": number})
    lost = [sum(each["dropped"]) + each["overwrites"] for each in run.left]
    rows.append({"kind": "rank facts", "dropped": lost, "errors": [sum(each["errors"]) for each in run.left],
                 "twins": [each["facts"].get("graphs", {}) for each in run.left],
                 "clocks": [{name: each[name] for name in ("clock_quantum", "boundary_cost", "stamp_quantum", "stamp_cost")}
                            for each in run.left]})  # fmt: skip
    return rows


def share_rows(run: Run, each: dict[str, Any]) -> Rows:
    """Operators' part of the steps of a pass, all ranks together; without the first step, which warms up."""
    seconds, calls, steps = np.zeros(len(Operator)), np.zeros(len(Operator), int), 0
    for of_rank in run.steps:
        for step, intervals in of_rank:
            if each["first"] < step["number"] <= each["last"] and len(intervals):
                seconds += np.bincount(intervals["operator"], intervals["seconds"], len(Operator))
                calls += np.bincount(intervals["operator"], minlength=len(Operator))
                steps += 1
    return [
        {"kind": "share", "mode": each["mode"], "operator": operator.value, "steps": steps,
         "percent": round(100 * float(seconds[operator.code] / seconds.sum()), 3),
         "mean_us": round(1e6 * float(seconds[operator.code] / calls[operator.code]), 3)}
        for operator in sorted(Operator, key=lambda operator: -seconds[operator.code]) if calls[operator.code]
    ]  # fmt: skip


def in_layers(matched: Matched) -> np.ndarray:
    """Which of its calls are the all_reduce of layers: the embedding's waits for the host, and the logits' is another."""
    inside: np.ndarray = (matched.calls["operator"] == Operator.ALL_REDUCE.code) & (matched.calls["layer"] >= 0)
    return inside


def compared(matched: Matched, mode: str) -> np.ndarray:
    """Those of them that a delay is judged by. Launched ahead, the first call of a step is not: the ranks' GPUs are let go
    right before it, each when its own host had come that far, so it says whose host was later.
    """
    inside, calls = in_layers(matched), matched.calls
    if mode == AHEAD:
        inside &= (calls["layer"] > 0) | (calls["site"] != Site.ATTENTION.code)
    return inside


def pass_row(run: Run, each: dict[str, Any]) -> dict[str, Any]:
    """Transfer of a call, what each rank waited on average, and in how many steps and calls which rank was last.

    ``told``: how many calls have a transfer, ``sure``: how many say who was last. The waits are those of the latter (the exporter
    counts what is certain of all), and a step without such a call names nobody. ``transfer_us_by_last``: the mean over the calls
    in which that rank's time was the least, however little; ranks' own times differ, and a delay changes whose it is.
    ``transfer_us_by_site``: of sites with a call in every step at least, on average.
    """
    noise = noise_seconds(*run.clock(each["mode"]))
    transfers, waits, last_steps, last_calls, known, calls = [], [], [], [], 0, 0
    steps = run.of(each)
    by_last: list[list[float]] = [[] for _ in run.steps]
    by_site: dict[Site, list[np.ndarray]] = {Site.ATTENTION: [], Site.FFN: []}
    for matched in steps:
        layers = matched.only(compared(matched, each["mode"]))
        calls += len(layers.calls)
        transfer, wait = transfer_and_wait(layers.seconds, layers.min_seconds)
        moves = has_transfer(layers)
        if len(moved := transfer[moves]):
            transfers.append(float(moved.mean()))
            known += len(moved)
            least = layers.seconds[:, moves].argmin(axis=0)
            for rank, own in enumerate(by_last):
                own.extend(moved[least == rank].tolist())
            for site, parts in by_site.items():
                if len(part := moved[layers.calls["site"][moves] == site.code]):
                    parts.append(part)
        wait = wait[:, last_rank_known(layers)]
        if not wait.shape[1]:
            continue
        waits.append(wait.mean(axis=1))
        last_calls += last_arrival(wait, noise).tolist()
        last_steps.append(int(last_arrival(wait.mean(axis=1, keepdims=True), noise)[0]))
    slow = each["slow"]
    row = {
        "kind": each["kind"], "mode": each["mode"], "slow": slow, "delay_ms": each["delay_ms"],
        "steps": each["steps"], "matched": len(steps), "calls": calls, "told": known, "sure": len(last_calls),
        "transfer_us": _median_us(transfers),
        "transfer_us_by_step": [round(1e6 * value, 3) for value in transfers],
        "transfer_us_by_site": {
            site.value: _median_us([float(part.mean()) for part in parts])
            for site, parts in by_site.items() if sum(map(len, parts)) >= each["steps"]
        },
        "transfer_us_by_last": [round(1e6 * float(np.mean(own)), 3) if own else None for own in by_last],
        "calls_by_last": [len(own) for own in by_last],
        "wait_us": [round(1e6 * float(value), 3) for value in np.mean(waits, axis=0)] if waits else None,
        "named_steps": sum(rank == slow for rank in last_steps), "named_calls": sum(rank == slow for rank in last_calls),
    }  # fmt: skip
    if each["mode"] != SEEN:
        return row
    chosen = [(int(matched.step["number"]) - each["first"], matched, in_layers(matched)) for matched in steps]
    return row | witness.judged(chosen, [left["seen"][str(each["first"])] for left in run.left], each["steps"], noise)


def _median_us(seconds: Sequence[float]) -> float | None:
    return round(1e6 * float(np.median(seconds)), 3) if seconds else None


def bandwidth_row(run: Run, each: dict[str, Any], own: Sequence[Sequence[dict[str, float]]]) -> dict[str, Any]:
    """The exporter's bus bandwidth of the layers' all_reduce, and the same from the benchmark's own times and sizes."""
    matched, ranks = run.of(each), len(own)
    found = Collectives()
    for step in matched:
        found.add(step, *run.clock(each["mode"]))
    layers = [at for at in found.transfer if at[0] in (Site.ATTENTION.code, Site.FFN.code)]
    moved = sum(found.bus_bytes[at] for at in layers)
    exported = moved / sum(found.transfer[at].total for at in layers) if layers else None
    kept = [
        (in_layers(step) & has_transfer(step))[step.calls["operator"] == Operator.ALL_REDUCE.code] for step in matched
    ]
    chosen = np.concatenate(kept) if kept else np.zeros(0, bool)
    problem = "" if all(len(calls) == len(chosen) for calls in own) else "own calls are not those of the plugin"
    if problem or exported is None:
        return {"kind": "bandwidth", "problem": problem or "no step was matched"}
    seconds = np.array([[call["seconds"] for call in calls] for calls in own])[:, chosen].min(axis=0)
    size = np.array([call["bytes"] for call in own[0]])[chosen]
    # nccl-tests, doc/PERFORMANCE.md: algbw = S/t; all_reduce's busbw = algbw * (2*(n-1)/n)
    independent = float(size.sum() / seconds.sum() * (2 * (ranks - 1) / ranks))
    return {
        "kind": "bandwidth", "problem": "", "calls": int(chosen.sum()), "payload_bytes": int(size[0]),
        "exported_bytes_per_second": round(exported), "independent_bytes_per_second": round(independent),
        "error_percent": round(100 * (exported / independent - 1), 4),
    }  # fmt: skip


# What is claimed -------------------------------------------------------------------------------------------------------


def summarise(rows: Rows) -> dict[str, Any]:
    """Everything from the rows alone. ``transfer_shift_percent``: of ranks with a GPU each, if there are any."""
    slow = [row for row in rows if row.get("kind") == "slow"]
    groups = {one_gpu: slow_group(own) for one_gpu in (False, True) if (own := of_group(rows, one_gpu))}
    chosen: dict[str, Any] = next((each for each in groups.values() if each["slow_steps"]), {})
    steps = sum(row["steps"] for row in slow)
    named = [100 * row["named_steps"] / row["steps"] for row in slow]
    bandwidth = [row for row in rows if row.get("kind") == "bandwidth" and not row["problem"]]
    return {
        **{name: chosen.get(name) for name in SHIFTS},
        "slow_groups": {"one GPU" if one_gpu else "a GPU each": each for one_gpu, each in groups.items() if each["slow_steps"]},
        "straggler_named_percent": round(100 * sum(row["named_steps"] for row in slow) / steps, 2) if steps else None,
        "straggler_named_percent_worst_pass": round(min(named), 2) if named else None,
        "straggler_named_percent_of_calls": percent(
            sum(row["named_calls"] for row in slow), sum(row.get("sure", row["calls"]) for row in slow)
        ),
        "slow_steps": steps,
        "bus_bandwidth_error_percent": max((abs(row["error_percent"]) for row in bandwidth), default=None),
        "bus_bytes_per_second": [row["exported_bytes_per_second"] for row in bandwidth],
        "shares": shares(rows),
        "leads": {tp: {phase: leader(found) for phase, found in phases.items()} for tp, phases in shares(rows).items()},
        "unmatched": sum(row[reason.value] for row in rows if row.get("kind") == "unmatched" for reason in Unmatched),
        "errors": sum(sum(row["errors"]) for row in rows if row.get("kind") == "rank facts"),
        "dropped": sum(sum(row["dropped"]) for row in rows if row.get("kind") == "rank facts"),
        "problems": [f"tp {row['tp']}: {row['problem']}" for row in rows if row.get("problem")],
    }  # fmt: skip


def of_group(rows: Rows, one_gpu: bool) -> Rows:
    return [row for row in rows if "tp" in row and bool(row.get("one_gpu")) == one_gpu]


def slow_group(rows: Rows) -> dict[str, Any]:
    """Of ranks of one kind: how far a slow one moves transfer, in percent; of the worst pass."""
    slow = [row for row in rows if row.get("kind") == "slow"]
    found = [shift for row in slow if (shift := shift_of(row, rows)) is not None]
    modes = [mode for mode in DECODES if any(row["mode"] == mode for row in slow)]
    beyond = (max(shift["percent"] - shift["noise_percent"], 0.0) for shift in found)
    return {
        # The part beyond what passes without any delay differ by among themselves.
        "transfer_shift_percent": max(beyond, default=None),
        "transfer_shift_percent_with_noise": max((shift["percent"] for shift in found), default=None),
        "transfer_noise_percent": {mode: plain_noise(rows, mode) for mode in modes},
        "transfer_us": {mode: plain_transfer(rows, mode) for mode in modes},
        "slow_steps": sum(row["steps"] for row in slow),
    }


def plain_transfers(rows: Rows, mode: str) -> dict[str, list[float]]:
    """Site → transfer of the passes without a delay; all sites as one where the rows do not tell them apart."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.get("kind") == "plain" and row["mode"] == mode:
            for site, transfer in transfers_of(row).items():
                found.setdefault(site, []).append(transfer)
    return found


def transfers_of(row: dict[str, Any]) -> dict[str, float]:
    """By site, as the exporter's histograms have it: a delay changes of which site's calls it is known what they took."""
    every: dict[str, float | None] = row.get("transfer_us_by_site", {"": row["transfer_us"]})
    return {site: transfer for site, transfer in every.items() if transfer}


def plain_transfer(rows: Rows, mode: str) -> float | None:
    plain = [
        row["transfer_us"] for row in rows if row.get("kind") == "plain" and row["mode"] == mode and row["transfer_us"]
    ]
    return round(float(np.mean(plain)), 3) if plain else None


def plain_noise(rows: Rows, mode: str) -> float | None:
    """By how much the transfer of passes without a delay differs, largest to smallest, in percent of their mean; of the
    worst site.
    """
    return max((noise_of(plain) for plain in plain_transfers(rows, mode).values() if len(plain) > 1), default=None)


def noise_of(plain: Sequence[float]) -> float:
    return round(100 * (max(plain) - min(plain)) / float(np.mean(plain)), 3)


def shift_of(row: dict[str, Any], rows: Rows) -> dict[str, float] | None:
    """How far a slow rank moved the transfer from where it is without one, and what noise there is in that; of the site
    that moved furthest.
    """
    found = []
    plain = plain_transfers(rows, row["mode"])
    for site, transfer in transfers_of(row).items():
        if len(own := plain.get(site, [])) > 1:
            shift = round(100 * abs(transfer / float(np.mean(own)) - 1), 3)
            found.append({"percent": shift, "noise_percent": noise_of(own)})
    return max(found, key=lambda shift: shift["percent"] - shift["noise_percent"], default=None)


def shares(rows: Rows) -> dict[str, dict[str, dict[str, float]]]:
    """tp, and whether its ranks had a GPU each → phase → operator → percent of the step, the largest first."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        if row.get("kind") == "share":
            phase = "prefill" if row["mode"] == PREFILL else "decode"
            group = f"tp{row['tp']}" + (", a GPU each" if row["tp"] > 1 and not row.get("one_gpu") else "")
            found.setdefault(group, {}).setdefault(phase, {})[row["operator"]] = row["percent"]
    return found


def leader(found: dict[str, float]) -> str:
    """The dearest operator; gap is none."""
    return next(name for name in found if name != Operator.GAP.value)


def percent(part: float, whole: float) -> float | None:
    return round(100 * part / whole, 2) if whole else None


# Running ---------------------------------------------------------------------------------------------------------------


def child(arguments: argparse.Namespace) -> None:
    """The checkpoint, or one rank, in the process that was started for it."""
    model = workers.checkpoint_of(arguments.work, arguments.shape, arguments.cpu)
    if arguments.child == "checkpoint":
        return
    import rank

    sizes = rank.TINY if arguments.cpu else rank.Sizes() if arguments.one_gpu else rank.Sizes(slow_batch=64)
    made = rank.passes(sizes, arguments.tp, not arguments.cpu, arguments.inject)
    words = [] if arguments.own else ["--disable_custom_allreduce"]
    rank.Rank(arguments, sizes, made, model, arguments.inject, words).run()


def shares_gpu(tp: int, gpus: int) -> bool:
    return gpus < tp and tp > 1


def left_rows(folder: Path, tp: int) -> Rows:
    return rows_of(Run.read(folder, tp), tp)


def run_group(
    arguments: argparse.Namespace, tp: int, gpus: int, inject: bool, script: str = __file__, words: Sequence[str] = (),
    more: Mapping[str, str] | None = None, read: Callable[[Path, int], Rows] = left_rows,
) -> Rows:  # fmt: skip
    """Rows of one group; also those of one that did not come to its end, and why.

    ``script``: whose child each rank is, with ``words`` besides; ``more``: of their environment; ``read``: rows from what
    they left.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"tp{tp}-", dir=arguments.work))
    one_gpu = shares_gpu(tp, gpus)
    processes = []
    try:
        for rank in range(tp):
            command = [
                sys.executable,
                script,
                "--child",
                "rank",
                "--tp",
                str(tp),
                "--rank",
                str(rank),
                "--folder",
                str(folder),
            ]
            command += common(arguments) + (["--one-gpu"] if one_gpu else []) + (["--inject"] if inject else [])
            command += words
            environ = workers.environment(arguments.cpu) | (more or {})
            if one_gpu:
                environ |= {**SOCKETS, "NCCL_HOSTID": f"node{rank}"}
            with (folder / f"rank-{rank}.log").open("wb") as log:
                processes.append(subprocess.Popen(
                    command, env=environ, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                ))  # fmt: skip
        problem = workers.wait_for(processes, arguments.limit)
    finally:
        workers.end(processes)
    try:
        rows = read(folder, tp)
    except (OSError, ValueError) as error:
        rows = []
        problem = problem or repr(error)
    if problem:
        rows.append({"kind": "problem", "problem": problem})
        for log in sorted(folder.glob("*.log")):
            print(log.name, log.read_text(errors="replace")[-3000:], flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    return [{"tp": tp, "one_gpu": one_gpu, **row} for row in rows]


def common(arguments: argparse.Namespace) -> list[str]:
    words = ["--work", str(arguments.work), "--shape", arguments.shape, "--nccl-port", str(arguments.nccl_port)]
    words += ["--source", str(arguments.source)] if arguments.source else []
    return words + (["--cpu"] if arguments.cpu else []) + (["--own"] if getattr(arguments, "own", False) else [])


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    made.add_argument("--source", type=Path, help="a checkout of the current LightLLM")
    made.add_argument("--tp", type=int, action="append", help="default: 1, 2 and 4, and as many as there are GPUs")
    made.add_argument(
        "--slow-tp", type=int, help="of the group with a slow rank; default: one rank for each GPU, at least 2"
    )
    made.add_argument("--shape", default=SHAPE)
    made.add_argument("--cpu", action="store_true", help="only to try this script: times mean nothing")
    made.add_argument("--limit", type=float, default=120.0, help="seconds that one group may take")
    made.add_argument("--nccl-port", type=int, default=28865)
    made.add_argument("--work", type=Path, default=Path("/dev/shm/collectives"), help="the checkpoint is kept here")
    made.add_argument("--out", type=Path, default=outcome.RESULTS)
    made.add_argument("--merge", nargs="*", type=Path, default=[], help="earlier partial results, of other --tp")
    made.add_argument("--nothing", action="store_true", help="measure nothing: put the results of --merge together")
    made.add_argument("--child", choices=("checkpoint", "rank"), help=argparse.SUPPRESS)
    made.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    made.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    made.add_argument(
        "--own", action="store_true", help=f"with LightLLM's own all_reduce, where its kernels are there: {OWN}.json"
    )
    for switch in ("--one-gpu", "--inject"):
        made.add_argument(switch, action="store_true", help=argparse.SUPPRESS)
    return made


def main() -> None:
    arguments = parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what outlives this script keeps its GPU memory
    if arguments.cpu:
        arguments.shape = "tiny"
    if arguments.child:
        arguments.tp = (arguments.tp or [1])[0]
        child(arguments)
        return
    name = OWN if arguments.own else "collectives"
    gpus = 0 if arguments.cpu else int(outcome.gpu().get("count", 0))
    wanted = [] if arguments.nothing else arguments.tp or sorted({*PARALLEL, *([gpus] if gpus > 1 else [])})
    slow_tp = arguments.slow_tp or max(gpus, 2)
    arguments.out.mkdir(parents=True, exist_ok=True)
    arguments.work.mkdir(parents=True, exist_ok=True)
    merged = [json.loads(path.read_text()) for path in arguments.merge]
    now = {(tp, shares_gpu(tp, gpus)) for tp in wanted}
    rows = [
        row for earlier in merged for row in earlier["rows"] if "tp" in row and (row["tp"], row["one_gpu"]) not in now
    ]
    if arguments.nothing:
        outcome.write(name, summarise(rows), rows, arguments.out, merged, measured=False)
        return
    problem = workers.run([__file__, "--child", "checkpoint", *common(arguments)], arguments.cpu, arguments.limit)
    if problem:
        sys.exit(f"no checkpoint: {problem}")
    workers.say("checkpoint is there")
    for number, tp in enumerate(wanted):
        arguments.nccl_port += number  # the last group's may linger
        rows += run_group(arguments, tp, gpus, inject=tp == slow_tp, more={} if shares_gpu(tp, gpus) else HOST_MEMORY)
        workers.say(f"tp {tp}: {len(rows)} rows so far")
        outcome.write(name, summarise(rows), rows, arguments.out, merged)
    summary = summarise(rows)
    print(json.dumps(summary, indent=1, default=float))
    sys.exit(bool(summary["problems"]))


if __name__ == "__main__":
    main()
