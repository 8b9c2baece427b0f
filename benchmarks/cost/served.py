"""Real servers of one LightLLM, stock and instrumented, all at once: cost, accuracy, answers, and whether figures are shifted.

    python benchmarks/cost/served.py --name main@87881ae7c --source CHECKOUT --out FOLDER

Needs a GPU, lightllm-otel and LightLLM's packages in this Python, and a checkout of LightLLM. It starts the servers that the
parts need, lets all stand still but the one that is measured, and writes results after each part:

- overhead-NAME.json (served_overhead.py): of every shape, what each setting costs in the server's own infer threads, and
  two servers in turn.
- accuracy-NAME.json (served_accuracy.py): operators of every shape against CUPTI.
- answers-NAME.json (served_answers.py): the same answers as a stock server, undisturbed and disturbed.
- order-NAME.json (served_order.py): each step's batch, tokens, context and time belong together.

Every row has the name of the host. ``overhead.py --merge`` and ``accuracy.py --merge`` take the first two in.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import _paths  # noqa: F401 - puts the other folders on sys.path
import comparison
import outcome
import served_accuracy
import served_answers
import served_claims
import served_order
import served_overhead
from checkpoint import SHAPES, Shape, write
from model_servers import Arm, Kind, ModelServer, only
from workers import say

PARTS = ("overhead", "turns", "answers", "order", "accuracy", "starts")
LIVE = "served"  # what rows of these servers are called in overhead.json
WARM_POSITIONS = 16
Rows = list[dict[str, Any]]
SUMMARIES: dict[str, Callable[[Rows], dict[str, Any]]] = {
    "overhead": served_claims.summarise, "accuracy": comparison.summarise, "answers": served_answers.summarise,
    "order": served_order.summarise,
}  # fmt: skip


class Results:
    """A file for each kind of rows, written whenever there are more."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name, self._folder = name, folder
        self._about = {
            "date": outcome.today(), "gpu": outcome.gpu(), "software": outcome.software(), "commit": outcome.commit(),
            "cores": os.cpu_count(),
        }  # fmt: skip
        self._rows: dict[str, Rows] = {}

    def keep(self, kind: str, rows: Rows) -> None:
        """Add rows, and write them as they are: the rest of a result takes longer than a pass should wait."""
        own = self._rows.setdefault(kind, [{"part": LIVE, "host": self._name, "kind": "about", **self._about}])
        own += [{"part": LIVE, "host": self._name, **row} for row in rows]
        text = json.dumps({**self._about, "command": "", "rows": own}, default=lambda value: value.item())
        (self._folder / f"{self._file(kind)}.json").write_text(text)

    def summarise(self) -> None:
        """Write every file as a whole result."""
        for kind, rows in self._rows.items():
            outcome.write(self._file(kind), SUMMARIES[kind](rows), rows, self._folder)

    def _file(self, kind: str) -> str:
        return f"{kind}-{self._name.partition('@')[0]}"

    def problem(self, kind: str, part: str) -> None:
        """The exception that is being handled becomes a row."""
        text = traceback.format_exc()
        print(text, flush=True)
        shape = {"shape": "any", "batch": 0, "arm": part, "server": part}
        self.keep("problems", [{**shape, "kind": "problem", "of": kind, "problem": text}])


SUMMARIES["problems"] = lambda rows: {"problems": [row["problem"][-600:] for row in rows if "problem" in row]}


@dataclasses.dataclass
class Fleet:
    """The servers of this run, by name."""

    servers: dict[str, ModelServer]

    def of(self, shape: str, instrumented: bool) -> ModelServer | None:
        kind = "instrumented" if instrumented else "stock"
        return self.servers.get(f"{shape}-{kind}")

    @property
    def all(self) -> list[ModelServer]:
        return list(self.servers.values())


def work_folder(shapes: Sequence[str]) -> Path:
    """In memory where the checkpoints take at most two thirds of what is free, else on the disk."""
    wanted = sum(weight_bytes(SHAPES[shape]) for shape in shapes)
    for base in (Path("/dev/shm"), Path("/tmp")):
        there = base / "served"
        kept = sum(each.stat().st_size for each in there.rglob("*.safetensors")) if there.exists() else 0
        if base.is_dir() and wanted - kept < shutil.disk_usage(base).free * 2 / 3:
            return there
    raise RuntimeError(f"no room for {wanted / 1e9:.0f} GB of weights in /dev/shm or /tmp; give --work")


def weight_bytes(shape: Shape) -> int:
    """Bytes of the weights in 16 bits."""
    width = shape.experts * shape.moe_intermediate if shape.experts else shape.intermediate
    layer = 2 * shape.hidden * (shape.q_hidden + shape.kv_hidden) + 3 * shape.hidden * width
    return 2 * (shape.layers * layer + 2 * shape.vocab * shape.hidden)


def checkpoints(arguments: argparse.Namespace) -> dict[str, Path]:
    """One folder for each shape, written side by side by processes that then end."""
    dtype = "float32" if arguments.cpu else "float16"
    folders = {shape: arguments.work / f"{shape}-{dtype}" for shape in arguments.shapes}
    missing = {shape: folder for shape, folder in folders.items() if not (folder / "whole").exists()}
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write, args=(folder, SHAPES[shape], dtype)) for shape, folder in missing.items()]
    for each in writers:
        each.start()
    for each in writers:
        each.join()
    if any(each.exitcode for each in writers):
        raise RuntimeError(f"a checkpoint could not be written below {arguments.work}")
    for folder in missing.values():
        (folder / "whole").touch()
    say(f"checkpoints are there: {', '.join(folders)}")
    return folders


def kinds(arguments: argparse.Namespace) -> list[Kind]:
    """What the parts need: every shape instrumented, and the first one stock."""
    sizes = {"LIGHTLLM_OTEL_GRAPH_BATCH_SIZES": arguments.graph_sizes} if arguments.graph_sizes else {}
    made = [Kind(f"{shape}-instrumented", shape, True, sizes) for shape in arguments.shapes]
    if {"turns", "answers"} & set(arguments.parts):
        made.insert(0, Kind(f"{arguments.shapes[0]}-stock", arguments.shapes[0], False))
    return made


@contextlib.contextmanager
def running(arguments: argparse.Namespace, results: Results) -> Iterator[Fleet]:
    """All servers, started at once."""
    folders = checkpoints(arguments)
    fleet = Fleet({})
    try:
        for kind in kinds(arguments):
            server = ModelServer(
                kind, folders[kind.shape], arguments.source, arguments.work / kind.name, arguments.cpu, words(arguments)
            )
            fleet.servers[kind.name] = server
            server.start()
            time.sleep(0 if arguments.cpu else arguments.apart)  # LightLLM looks for free ports before it binds them
        for server in fleet.all:
            server.wait()
            say(f"{server.kind.name} has answered after {server.seconds:.0f} s")
            results.keep("overhead", [{
                "kind": "start", "shape": server.kind.shape, "server": server.kind.name, "together": len(fleet.all),
                "seconds": round(server.seconds, 2),
            }])  # fmt: skip
        yield fleet
    finally:
        for server in fleet.all:
            with contextlib.suppress(Exception):
                log = server.server.log
                shutil.copy(log, arguments.out / f"{server.kind.name}.log")
            server.stop()


def words(arguments: argparse.Namespace) -> list[str]:
    """Words of the servers' command line."""
    if arguments.cpu:
        return []
    return [
        "--max_total_token_num", str(arguments.tokens), "--graph_max_batch_size", str(arguments.graph_max_batch_size),
        *arguments.word,
    ]  # fmt: skip


def warm_up(fleet: Fleet, load: served_overhead.Load, batches: Sequence[int]) -> None:
    """Kernels are compiled and tuned in the first step of each kind."""
    for server in fleet.all:
        with only(server, fleet.all):
            for batch in batches:
                short = dataclasses.replace(load, batch=batch, positions=WARM_POSITIONS)
                served_overhead.together(server.port, short.requests())
            say(f"{server.kind.name} is warm: {json.dumps(server.ring().get('facts', {}).get('graphs', {}))[:300]}")


# Parts -----------------------------------------------------------------------------------------------------------------


def overhead(arguments: argparse.Namespace, fleet: Fleet, results: Results, until: Callable[[float], float]) -> None:
    """The first shape has the whole time, the others as much as is left of it."""
    load = served_overhead.TINY if arguments.cpu else served_overhead.Load()
    reference = Arm[arguments.reference.upper()]
    for number, shape in enumerate(arguments.shapes):
        server = fleet.of(shape, True)
        assert server is not None
        about = {"shape": shape}
        with only(server, fleet.all):
            keep = lambda rows: results.keep("overhead", rows)  # noqa: E731
            cases = served_overhead.cases(arguments.scale * (1.0 if number == 0 else 0.6), reference)
            cases = [case for case in cases if not arguments.cases or case.name in arguments.cases]
            served_overhead.Measurement(server, load, keep, about).run(
                cases, until(1 / (len(arguments.shapes) - number))
            )
            short = dataclasses.replace(load, positions=4 * load.block)
            results.keep("overhead", served_overhead.own_times(server, short, about))
            results.keep("overhead", [{"kind": "plugin", "server": server.kind.name, **about, **server.ring(),
                                       "memory": server.ask("memory")}])  # fmt: skip
        say(f"overhead of {shape}")


def turns(arguments: argparse.Namespace, fleet: Fleet, results: Results, until: Callable[[float], float]) -> None:
    shape = arguments.shapes[0]
    stock, instrumented = fleet.of(shape, False), fleet.of(shape, True)
    assert stock is not None
    assert instrumented is not None
    load = served_overhead.TINY if arguments.cpu else dataclasses.replace(served_overhead.Load(), positions=384)
    keep = lambda rows: results.keep("overhead", rows)  # noqa: E731
    rounds = max(2, 2 * round(arguments.rounds * arguments.scale / 2))
    served_overhead.in_turn(stock, instrumented, fleet.all, load, rounds, keep, {"shape": shape}, until(1.0))


def answers(arguments: argparse.Namespace, fleet: Fleet, results: Results, until: Callable[[float], float]) -> None:
    shape = arguments.shapes[0]
    stock, instrumented = fleet.of(shape, False), fleet.of(shape, True)
    assert stock is not None
    assert instrumented is not None
    amount = served_answers.TINY if arguments.cpu else served_answers.Amount()
    rows = served_answers.measure(stock, instrumented, fleet.all, amount, arguments.source, {"shape": shape})
    results.keep("answers", [*rows, {"kind": "ring", "shape": shape, **instrumented.ring()}])


def order(arguments: argparse.Namespace, fleet: Fleet, results: Results, until: Callable[[float], float]) -> None:
    shape = arguments.shapes[-1]
    server = fleet.of(shape, True)
    assert server is not None
    with only(server, fleet.all):
        stairs = served_order.TINY if arguments.cpu else served_order.Staircase()
        results.keep("order", served_order.measure(server, stairs, {"shape": shape}))


def accuracy(arguments: argparse.Namespace, fleet: Fleet, results: Results, until: Callable[[float], float]) -> None:
    amount = served_accuracy.TINY if arguments.cpu else served_accuracy.Amount()
    for shape in arguments.shapes:
        server = fleet.of(shape, True)
        assert server is not None
        with only(server, fleet.all):
            case = {"shape": shape, "layers": SHAPES[shape].layers}
            served_accuracy.measure(server, amount, case, lambda rows: results.keep("accuracy", rows))
        say(f"accuracy of {shape}")


def starts(arguments: argparse.Namespace, results: Results) -> None:
    """A stock and an instrumented server alone, each with the host's and the plugin's own defaults: seconds and memory."""
    folder = checkpoints(arguments)[arguments.shapes[0]]
    for number, instrumented in enumerate((False, True, True, False)[: 4 if arguments.scale >= 1 else 2]):
        name = f"{'instrumented' if instrumented else 'stock'}-alone-{number}"
        kind = Kind(name, arguments.shapes[0], instrumented)
        server = ModelServer(
            kind, folder, arguments.source, arguments.work / name, arguments.cpu,
            [] if arguments.cpu else ["--graph_max_batch_size", "256", "--mem_fraction", "0.8", "--max_total_token_num", "32000"],
        )  # fmt: skip
        try:
            server.start()
            server.wait()
            results.keep("overhead", [{
                "kind": "start", "shape": kind.shape, "server": name, "together": 1, "seconds": round(server.seconds, 2),
                **server.ask("memory"), "graphs": server.ring().get("facts", {}).get("graphs", {}),
            }])  # fmt: skip
            say(f"{name} has answered after {server.seconds:.0f} s")
        finally:
            with contextlib.suppress(Exception):
                shutil.copy(server.server.log, arguments.out / f"{name}.log")
            server.stop()


def run(arguments: argparse.Namespace, results: Results) -> None:
    """Every part that is wanted; one that fails leaves a row that says why, and the next begins."""
    deadline = time.monotonic() + arguments.seconds
    done = {"overhead": overhead, "turns": turns, "answers": answers, "order": order, "accuracy": accuracy}
    wanted = [name for name in arguments.parts if name in done]
    if wanted:
        with running(arguments, results) as fleet:
            warm_up(fleet, served_overhead.TINY if arguments.cpu else served_overhead.Load(),
                    (1, 2) if arguments.cpu else (1, 20, 64))  # fmt: skip
            deadline = time.monotonic() + arguments.seconds
            for name in wanted:
                if time.monotonic() > deadline:
                    say(f"no time is left for {name}")
                    continue
                share = arguments.share.get(name, 1.0)
                end = min(deadline, time.monotonic() + share * arguments.seconds)

                def until(part: float, end: float = end) -> float:
                    return time.monotonic() + part * max(end - time.monotonic(), 0.0)

                try:
                    done[name](arguments, fleet, results, until)
                    say(f"{name}: done")
                except Exception:  # noqa: BLE001 - GPU time is dear: the other parts count
                    results.problem("overhead" if name == "turns" else name, name)
                results.summarise()
            for server in fleet.all:
                for problem in server.problems():
                    results.keep("problems", [{"kind": "problem", "shape": server.kind.shape, "problem": problem}])
    if "starts" in arguments.parts and time.monotonic() < deadline:
        try:
            starts(arguments, results)
        except Exception:  # noqa: BLE001
            results.problem("overhead", "starts")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    made.add_argument("--name", required=True, help="of the host in every row, like main@87881ae7c")
    made.add_argument("--source", type=Path, required=True, help="a checkout of LightLLM")
    made.add_argument("--shapes", nargs="+", default=["llama-7b", "qwen3-8b"], choices=sorted(SHAPES))
    made.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    made.add_argument("--seconds", type=float, default=1100.0, help="for everything behind the start of the servers")
    made.add_argument(
        "--share", type=json.loads, default={"overhead": 0.5, "turns": 0.1}, help="JSON: of these seconds"
    )
    made.add_argument("--scale", type=float, default=1.0, help="how many passes, beside the usual number")
    made.add_argument("--cases", nargs="*", default=[], help="settings whose cost is measured; default: all")
    made.add_argument("--rounds", type=int, default=6, help="of the two servers in turn")
    made.add_argument(
        "--reference", default="absent", choices=("absent", "off"), help="what settings are compared with"
    )
    made.add_argument(
        "--graph-sizes", default="1,20,64", help="batch sizes with an instrumented graph; empty: the default"
    )
    made.add_argument("--graph-max-batch-size", type=int, default=64)
    made.add_argument("--tokens", type=int, default=34000, help="of each server's KV cache")
    made.add_argument("--word", action="append", default=[], help="one more word of the servers' command line")
    made.add_argument("--apart", type=float, default=4.0, help="seconds between the starts of two servers")
    made.add_argument("--cpu", action="store_true", help="only to try this script: times mean nothing")
    made.add_argument("--work", type=Path, help="checkpoints, logs, recordings; default: in memory if there is room")
    made.add_argument("--out", type=Path, required=True)
    return made


def main() -> None:
    arguments = parser().parse_args()
    # What outlives this script keeps its GPU memory: end by unwinding, also when a time limit ends us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if arguments.cpu:
        arguments.shapes = ["tiny"]
    arguments.work = arguments.work or work_folder(arguments.shapes)
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = Results(arguments.name, arguments.out)
    try:
        run(arguments, results)
    except Exception:  # noqa: BLE001 - what was measured is kept
        results.problem("any", "run")
        sys.exit(1)
    finally:
        results.summarise()
        say("end")


if __name__ == "__main__":
    main()
