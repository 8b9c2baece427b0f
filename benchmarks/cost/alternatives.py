"""What other ways to operator times cost, none of them ours, measured as the plugin is: in turn with nothing.

- event_pairs: a pair of CUDA events around every operator of every layer, each read a step later, when it costs no
  waiting. Works without CUDA graphs only, so eager_instead_of_graphs belongs to its price.
- launch_blocking: CUDA_LAUNCH_BLOCKING=1, with which a Python timer around an operator is right. A process of its own.
- torch_profiler: torch.profiler with the GPU's activities, always on.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pairing
from alternation import Batch, straight
from pairing import Schedule
from plugin_cost import Keep, Rows, Sizes, passes, rows_of, stock_tokens
from workers import build, checkpoint_of, environment, say, stay_on_one_core

from lightllm_otel.contracts.patch_set import PatchSet
from lightllm_otel.worker.host.layers import layers_of

PROFILER_BLOCK, PROFILER_DROPPED = 64, 4
Events = tuple[str, Any, Any]


class EventPairs:
    """A careful version of what one would write by hand. Off until it is switched on."""

    def __init__(self, model: Any) -> None:
        from lightllm.server.router.model_infer.mode_backend import generic_post_process

        self.seconds: dict[str, float] = defaultdict(float)
        self.pairs_read = 0
        self._now: list[Events] = []
        self._earlier: list[Events] = []
        self._spare: list[tuple[Any, Any]] = []
        self._patch_set = PatchSet()
        for layer in list(layers_of(model)):
            for place in layer.places.values():
                self._patch_set.replace(place.owner, place.name, self._around(place.slot.operator.value))
        self._patch_set.replace(generic_post_process, "sample", self._sampling)
        self._patch_set.suspend()

    def switch(self, on: bool) -> None:
        (self._patch_set.resume if on else self._patch_set.suspend)()
        self._spare += [(first, last) for _, first, last in (*self._now, *self._earlier)]
        self._now, self._earlier = [], []

    def close(self) -> None:
        self._patch_set.undo()

    def _pair(self) -> tuple[Any, Any]:
        import torch

        if self._spare:
            return self._spare.pop()
        if torch.version.cuda is None:
            return _HostEvent(), _HostEvent()
        return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def _around(self, operator: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrap(host: Callable[..., Any]) -> Callable[..., Any]:
            def timed(*args: Any, **kwargs: Any) -> Any:
                first, last = self._pair()
                first.record()
                result = host(*args, **kwargs)
                last.record()
                self._now.append((operator, first, last))
                return result

            return timed

        return wrap

    def _sampling(self, host: Callable[..., Any]) -> Callable[..., Any]:
        """All of a step is launched when its sampling is, and the host is about to wait: a good moment to read."""
        around = self._around("sampling")(host)

        def timed(*args: Any, **kwargs: Any) -> Any:
            result = around(*args, **kwargs)
            for operator, first, last in self._earlier:
                self.seconds[operator] += 1e-3 * first.elapsed_time(last)
                self._spare.append((first, last))
            self.pairs_read += len(self._earlier)
            self._earlier, self._now = self._now, []
            return result

        return timed


class _HostEvent:
    """What stands for an event where there is no GPU, to try this script."""

    def record(self) -> None:
        self.time = time.perf_counter()

    def elapsed_time(self, later: _HostEvent) -> float:
        return 1e3 * (later.time - self.time)


class Profiling:
    """torch.profiler for as long as it is switched on; starting and stopping lies between steps."""

    def __init__(self) -> None:
        self._profile: Any = None
        self.runs = 0

    def switch(self, on: bool) -> None:
        import torch
        from torch.profiler import ProfilerActivity, profile

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if self._profile is not None:
            self._profile.stop()
            self._profile = None
        if on:
            on_gpu = torch.version.cuda is not None
            self._profile = profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU])
            self._profile.start()
            self.runs += 1


class BlockingProcess:
    """The same model in a process with CUDA_LAUNCH_BLOCKING=1, which runs a pass when it is told to."""

    def __init__(self, arguments: argparse.Namespace, graphs: bool) -> None:
        ours, theirs = Pipe()
        command = [sys.executable, str(Path(__file__).with_name("overhead.py")), "--child", "blocking"]
        command += ["--shape", arguments.shape]
        command += ["--work", str(arguments.work), "--pipe", str(theirs.fileno())]
        command += ["--nccl-port", str(arguments.nccl_port + (7 if graphs else 14))]
        command += ["--source", str(arguments.source)] if arguments.source else []
        command += ["--cpu"] if arguments.cpu else []
        command += [] if graphs else ["--eager"]
        environ = environment(arguments.cpu) | {"CUDA_LAUNCH_BLOCKING": "1"}
        self._process = subprocess.Popen(command, env=environ, pass_fds=[theirs.fileno()])
        theirs.close()
        self._pipe = ours

    def wait_ready(self) -> str:
        """A sentence when there is no model."""
        try:
            return str(self._pipe.recv())
        except EOFError:
            return f"ended with status {self._process.wait()}"

    def decode(self, graphs: bool, positions: int) -> np.ndarray:
        self._pipe.send((graphs, positions))
        return np.array(self._pipe.recv())

    def close(self) -> None:
        self._pipe.close()  # it ends by itself then
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve_passes(arguments: argparse.Namespace, sizes: Sizes) -> None:
    """The other side of BlockingProcess."""
    pipe = Connection(arguments.pipe)
    os.set_inheritable(arguments.pipe, False)
    graphs = not arguments.eager and not arguments.cpu
    model = build(arguments, arguments.shape, sizes.total_tokens, [sizes.batch], graphs=graphs)
    with model:
        for with_graphs in (True, False):
            _pass(model, sizes, with_graphs, 2)
        stay_on_one_core()  # as the plugin's own cases; the two processes take turns on it
        pipe.send("")
        with contextlib.suppress(EOFError):
            while True:
                with_graphs, positions = pipe.recv()
                pipe.send(_pass(model, sizes, with_graphs, positions).tolist())


def _pass(model: Any, sizes: Sizes, graphs: bool, positions: int) -> np.ndarray:
    batch = Batch(model, sizes.batch, sizes.input_tokens, graphs=graphs)
    with batch.prepared():
        return straight(positions, batch.begin, batch.decode)


def measure(arguments: argparse.Namespace, sizes: Sizes, keep: Keep) -> None:
    """All alternatives with a model of one shape. CUPTI, which stays once it is loaded, comes last."""
    checkpoint_of(arguments.work, arguments.shape, arguments.cpu)
    blocking = BlockingProcess(arguments, graphs=True)
    try:
        model = build(arguments, arguments.shape, sizes.total_tokens, [sizes.batch])
        with model:
            for graphs in (True, False):
                _pass(model, sizes, graphs, 2)
            stay_on_one_core()
            cases = {"launch_blocking": False, "launch_blocking_graphs": True}
            problem = blocking.wait_ready()
            if problem:  # perhaps graphs cannot be captured like this
                keep([{"case": "launch_blocking_graphs", "kind": "problem", "problem": f"launch_blocking: {problem}"}])
                del cases["launch_blocking_graphs"]
                blocking.close()
                blocking = BlockingProcess(arguments, graphs=False)
                if blocking.wait_ready():
                    cases.clear()
            say("both models are built")
            keep(stock_tokens(model, sizes, arguments.shape))
            keep(event_pairs(model, sizes, arguments.scale))
            say("event_pairs")
            keep(eager_instead_of_graphs(model, sizes, arguments.scale))
            say("eager_instead_of_graphs")
            for case, graphs in cases.items():
                keep(launch_blocking(case, model, blocking, sizes, graphs, arguments.scale))
                say(case)
            blocking.close()
            keep(torch_profiler(model, sizes, arguments.scale))
            say("torch_profiler")
    finally:
        blocking.close()


def case_row(case: str, mode: str, sizes: Sizes, schedule: Schedule, **more: Any) -> dict[str, Any]:
    return {
        "case": case, "kind": "case", "mode": mode, "batch": sizes.batch, "input_tokens": sizes.input_tokens,
        **dataclasses.asdict(schedule), **more,
    }  # fmt: skip


def event_pairs(model: Any, sizes: Sizes, scale: float) -> Rows:
    schedule = passes(sizes.eager, 8, scale)
    pairs = EventPairs(model.model)
    batch = Batch(model, sizes.batch, sizes.input_tokens, graphs=False)
    try:
        seconds = batch.decodes(schedule, pairs.switch)
    finally:
        pairs.close()
    model.release()
    case = case_row("event_pairs", "eager", sizes, schedule, pairs_read=pairs.pairs_read)
    return [case, *rows_of("event_pairs", pairing.cells(schedule, seconds))]


def eager_instead_of_graphs(model: Any, sizes: Sizes, scale: float) -> Rows:
    schedule = passes(sizes.eager, 4, scale)
    host = model.model
    graph = host.graph

    def switch(on: bool) -> None:
        host.graph = None if on else graph

    seconds = Batch(model, sizes.batch, sizes.input_tokens).decodes(schedule, switch)
    model.release()
    return [
        case_row("eager_instead_of_graphs", "eager beside graph", sizes, schedule),
        *rows_of("eager_instead_of_graphs", pairing.cells(schedule, seconds)),
    ]


def launch_blocking(case: str, model: Any, blocking: BlockingProcess, sizes: Sizes, graphs: bool, scale: float) -> Rows:
    """Pass by pass in turn, one process waiting while the other one runs."""
    schedule = passes(sizes.eager, 6, scale)
    on, off = [], []
    for number in range(schedule.passes):
        for blocked in (False, True) if number % 2 == 0 else (True, False):
            if blocked:
                on.append(blocking.decode(graphs, schedule.positions))
            else:
                off.append(_pass(model, sizes, graphs, schedule.positions))
    found = pairing.whole_passes(schedule, on, off)
    return [
        case_row(case, "graph" if graphs else "eager", sizes, schedule),
        pairing.tail_row(case, found), *pairing.cell_rows(case, found),
    ]  # fmt: skip


def torch_profiler(model: Any, sizes: Sizes, scale: float) -> Rows:
    """Also what a profiler that was on once leaves behind: its library stays in the process."""
    block = min(PROFILER_BLOCK, sizes.graph.positions // 2)
    schedule = passes(Schedule(sizes.graph.positions, block, 2, min(PROFILER_DROPPED, block - 1)), 4, scale)
    batch = Batch(model, sizes.batch, sizes.input_tokens)
    before = straight(schedule.positions, batch.begin, batch.decode)
    profiling = Profiling()
    began = time.perf_counter()
    seconds = batch.decodes(schedule, profiling.switch)
    took = time.perf_counter() - began
    after = straight(schedule.positions, batch.begin, batch.decode)
    model.release()
    counted = [at for at in range(schedule.positions) if schedule.counts(at)]
    case = case_row(
        "torch_profiler", "graph", sizes, schedule, profiler_runs=profiling.runs, seconds_with_starts=round(took, 2),
        off_before_first_use_us=round(1e6 * float(before[counted].mean()), 2),
        off_after_last_use_us=round(1e6 * float(after[counted].mean()), 2),
    )  # fmt: skip
    return [case, *rows_of("torch_profiler", pairing.cells(schedule, seconds))]
