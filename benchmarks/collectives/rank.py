"""One rank of a tensor-parallel group in this process, through a fixed sequence of passes that all ranks share.

It leaves ``rank-N.npy``, the cells that the plugin wrote, and ``rank-N.json``: which steps were which pass, what it timed
itself, and what the plugin says of its clocks.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import witness
from slowdown import Later, Sleep, Spin, patch_layers
from workers import CPU_MAX_LENGTH, MAX_LENGTH, say

PREFILL, GRAPH, EAGER = "prefill", "graph", "eager"
AHEAD = "eager_ahead"  # without graphs, but the GPU begins a step when its host has launched it
SEEN = "eager_seen"  # without graphs, while CUPTI watches: it knows which rank really was last
DECODES = (GRAPH, EAGER, AHEAD, SEEN)
NOBODY = -1
SPARE_STEPS = 16
OWN_PREFILLS = 2


@dataclasses.dataclass(frozen=True)
class Sizes:
    """``delays``: in milliseconds; ``steps``: decode steps of a pass.

    Passes with a slow rank have a batch of their own, ``slow_batch`` prompts of ``slow_input`` tokens. Ranks that share a
    GPU finish an all_reduce at the end of a time slice, wherever in one they began: what takes two slices moves by up to
    one of them with the delay.
    """

    batch: int = 8
    input_tokens: int = 256
    slow_batch: int = 8
    slow_input: int = 256
    prefills: int = 3
    steps: int = 12
    share_steps: int = 24
    delays: tuple[float, ...] = (5.0, 10.0, 20.0)


TINY = Sizes(batch=2, input_tokens=24, slow_batch=4, slow_input=6, prefills=2, steps=3, share_steps=3, delays=(20.0,))


@dataclasses.dataclass(frozen=True)
class Pass:
    """``slow``: the rank that is delayed, by ``delay_ms`` in each slot; ``kind``: what it is for; ``own``: times itself too;
    ``large``: the batch is that of passes with a slow rank, from here on.
    """

    kind: str
    mode: str
    steps: int
    slow: int = NOBODY
    delay_ms: float = 0.0
    own: bool = False
    large: bool = False


def passes(sizes: Sizes, tp: int, graphs: bool, inject: bool) -> list[Pass]:
    """The same on every rank. Passes without a delay come before, between and after those with one: their differences are
    what a delay must exceed.
    """
    decode = GRAPH if graphs else EAGER
    made = [Pass("warm", PREFILL, 1), Pass("share", PREFILL, sizes.prefills)]
    if inject:
        made.append(Pass("bandwidth", PREFILL, OWN_PREFILLS, own=True))
    made += [Pass("warm", decode, 3), Pass("share", decode, sizes.share_steps)]
    if inject:
        made.append(Pass("warm", PREFILL, 1, large=True))
    for mode in [GRAPH, EAGER] if graphs and inject else [EAGER] if inject else []:
        plain = Pass("plain", mode, sizes.steps)
        made += [Pass("warm", mode, 2), plain]
        for slow in range(tp):
            made += [Pass("slow", mode, sizes.steps, slow, delay) for delay in sizes.delays]
            made.append(plain)
    return made


class OwnTimes:
    """The benchmark's own clock around ``torch.distributed.all_reduce``, within the plugin's: CUDA events, or the CPU's time."""

    def __init__(self, cpu: bool) -> None:
        self.on = False
        self.calls: list[dict[str, float]] = []
        self._cpu = cpu
        self._pending: list[tuple[Any, Any, int]] = []

    def patch(self) -> None:
        import torch.distributed as dist

        host = dist.all_reduce

        def all_reduce(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            if not self.on:
                return host(tensor, *args, **kwargs)
            began = self._now()
            result = host(tensor, *args, **kwargs)
            self._pending.append((began, self._now(), tensor.numel() * tensor.element_size()))
            return result

        dist.all_reduce = all_reduce

    def _now(self) -> Any:
        if self._cpu:
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def collect(self) -> None:
        """After the GPU has finished."""
        for began, ended, size in self._pending:
            seconds = ended - began if self._cpu else began.elapsed_time(ended) * 1e-3
            self.calls.append({"seconds": seconds, "bytes": size})
        self._pending.clear()


class Rank:
    """``arguments``: of the benchmark's child; ``made``: the passes; ``words``: more of LightLLM's command line."""

    def __init__(
        self, arguments: argparse.Namespace, sizes: Sizes, made: Sequence[Pass], model_dir: Path, inject: bool,
        words: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.rank, self.tp, self.cpu, self.folder = arguments.rank, arguments.tp, arguments.cpu, arguments.folder
        self._sizes, self._inject, self._words = sizes, inject, words
        self._prompt = 0
        self._later = Later(Sleep if self.cpu else Spin)
        self._own = OwnTimes(self.cpu)
        os.environ |= {
            "LIGHTLLM_OTEL": "1", "LIGHTLLM_OTEL_DIR": str(self.folder / "otel"), "LIGHTLLM_OTEL_SAMPLE_EVERY": "1",
            "LIGHTLLM_OTEL_RING_MIB": "64", "LIGHTLLM_OTEL_STATE": str(self.folder / "state"),
        }  # fmt: skip
        if inject:
            patch_layers(self._later)
        self._own.patch()
        from lightllm_otel.inject import bootstrap

        self._hooks: Any = bootstrap.activate()
        self.passes = made
        self._ring: Any = None
        self._cells: list[np.ndarray] = []
        self._seen: dict[int, list[float]] = {}
        self.model = self._build(arguments, model_dir)
        say(f"rank {self.rank} of {self.tp} is there; instrumented graphs {self.session.instrumented_graphs.facts()}")

    def _build(self, arguments: argparse.Namespace, model_dir: Path) -> Any:
        from static_model import SPARE, StaticModel

        longest = CPU_MAX_LENGTH if self.cpu else MAX_LENGTH
        steps = sum(each.steps for each in self.passes if each.mode != PREFILL) + SPARE_STEPS
        batches = {self._sizes.batch: self._sizes.input_tokens}
        if self._inject:
            batches[self._sizes.slow_batch] = self._sizes.slow_input
        room = max(longest + SPARE, *(batch * (tokens + steps) for batch, tokens in batches.items()))
        words = ["--running_max_req_size", str(max(batches)), *(["--data_type", "float32"] if self.cpu else [])]
        words += self._words
        if arguments.one_gpu:  # every rank is a node of its own, and all nodes are this host
            words += ["--nnodes", str(self.tp), "--node_rank", str(self.rank), "--disable_custom_allreduce"]
        return StaticModel(
            model_dir, arguments.source, room, max(batches), not self.cpu, tp=self.tp, rank=self.rank,
            nccl_port=arguments.nccl_port, max_length=longest, graph_batches=sorted(batches), arguments=words,
        )  # fmt: skip

    @property
    def session(self) -> Any:
        return self._hooks.session()

    def run(self, go_on: Callable[[list[dict[str, Any]]], bool] = lambda done: True) -> bool:
        """All passes, or until ``go_on`` says no after one. Leaves what there is; whether all were run."""
        done: list[dict[str, Any]] = []
        for number, each in enumerate(self.passes):
            delay = each.delay_ms * 1e-3 if each.slow == self.rank else 0.0
            if self._inject:
                self._later.real.set(delay)
            first, context = self.session.forwards.completed, self.context
            with self._as(each):
                for step in range(each.steps):
                    self._step(each, number * 100 + step)
            self._settle()
            done.append({**dataclasses.asdict(each), "first": first, "last": self.session.forwards.completed - 1,
                         "context": context})  # fmt: skip
            if not go_on(done):
                break
        say(f"rank {self.rank}: {len(done)} passes")
        self._leave(done)
        return len(done) == len(self.passes)

    @property
    def context(self) -> int:
        """Tokens of a request before the next step."""
        return self._prompt + len(self.model.tokens[0]) if self.model.tokens else 0

    def cells(self) -> np.ndarray:
        """What the plugin has written so far."""
        if self._ring is None:
            from lightllm_otel.records.reader import RingReader

            # Once: opening it frees this process's own lock on it, and the exporter takes the ring of the dead away.
            self._ring = RingReader(next((self.folder / "otel").glob(f"*/rank-{self.rank}.ring")))
        self._cells.append(self._ring.read())
        return np.concatenate(self._cells)

    @contextlib.contextmanager
    def _as(self, each: Pass) -> Any:
        host = self.model.model
        graph = host.graph
        if each.mode in (EAGER, AHEAD, SEEN):
            host.graph = None
        self._own.on = each.own
        watching: Any = contextlib.nullcontext()
        if each.mode == SEEN:
            seen = self._seen.setdefault(self.session.forwards.completed, [])
            watching = witness.watching(self.folder / f"trace-{self.rank}.json", seen)
        try:
            with watching:
                yield
        finally:
            self._own.on, host.graph = False, graph

    def _step(self, each: Pass, seed: int) -> None:
        if each.mode != PREFILL:
            if each.mode == AHEAD:
                self._later.real.hold()
            self.model.decode()
            return
        if self.model.tokens:
            self.model.release()
        sizes = self._sizes
        prompts = (sizes.slow_batch, sizes.slow_input) if each.large else (sizes.batch, sizes.input_tokens)
        self._prompt = prompts[1]
        self.model.prefill(*prompts, seed)

    def _settle(self) -> None:
        if not self.cpu:
            import torch

            torch.cuda.synchronize()
        self.session.timer.tick()
        self._own.collect()

    def _leave(self, done: Sequence[dict[str, Any]]) -> None:
        np.save(self.folder / f"rank-{self.rank}.npy", self.cells())
        reader = self._ring
        header = reader.header
        # Results have had these names from the beginning; the header calls the last two timestamp_….
        clocks = {"clock_quantum": "clock_quantum", "boundary_cost": "boundary_cost", "stamp_quantum": "timestamp_quantum",
                  "stamp_cost": "timestamp_cost"}  # fmt: skip
        content = {
            "passes": done, "own": self._own.calls, "seen": self._seen, "facts": reader.facts(), "overwrites": reader.overwrites,
            "dropped": header["dropped"].tolist(), "errors": header["errors"].tolist(),
            **{name: float(header[field]) for name, field in clocks.items()},
        }  # fmt: skip
        (self.folder / f"rank-{self.rank}.json").write_text(json.dumps(content))
