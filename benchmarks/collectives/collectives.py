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

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import _paths  # noqa: F401 - puts the other folders on sys.path
import outcome
import workers
from collectives_claims import summarise
from collectives_rows import Rows, Run, rows_of

SHAPE = "llama-70b-6-layers"
PARALLEL = (1, 2, 4)
OWN = "collectives-own"
PATIENCE_SECONDS = 20.0
SOCKETS = {"NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1"}
HOST_MEMORY = {"NCCL_P2P_DISABLE": "1"}


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
