"""The plugin in one model process, switched on and off between steps as live control does it: the parts of overhead.py
that say what a step, a call of an operator's hook, the reading of a step and the graphs' instrumented graphs cost.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pairing
from alternation import Batch, straight
from pairing import Schedule
from process_memory import Grown

from lightllm_otel.records.vocabulary import DropReason, Level, Phase

MIN_PASSES = 16
HALF_WIDTH = 0.1  # points
Rows = list[dict[str, Any]]
Keep = Callable[[Rows], None]


@dataclasses.dataclass(frozen=True)
class Setting:
    level: Level
    every: int


OFF = Setting(Level.OFF, 64)
SETTINGS = {
    "default": Setting(Level.OPERATORS, 64),
    "every_step": Setting(Level.OPERATORS, 1),
    "steps_only": Setting(Level.STEPS, 64),
}


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    setting: str
    what: str  # graph, eager or prefill
    batch: int
    schedule: Schedule


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is run. Blocks of 8 steps are long enough that dropping one costs little, and short for a drift."""

    batch: int = 20
    input_tokens: int = 256
    prefill_batch: int = 8
    prefill_tokens: int = 1024
    graph: Schedule = Schedule(256, 8, 2)  # noqa: RUF009 - frozen
    eager: Schedule = Schedule(128, 8, 2)  # noqa: RUF009
    prefill: Schedule = Schedule(8, 4, 2)  # noqa: RUF009
    token_positions: int = 127
    eager_token_positions: int = 31
    sampled_steps: int = 2000
    probe_steps: int = 128
    hook_calls: int = 200_000

    @property
    def total_tokens(self) -> int:
        """Of the KV cache."""
        return max(
            self.batch * (self.input_tokens + self.graph.positions + 8), self.prefill_batch * (self.prefill_tokens + 8)
        )


TINY = Sizes(
    batch=2, input_tokens=8, prefill_batch=2, prefill_tokens=16, graph=Schedule(4, 2, 2), eager=Schedule(4, 2, 2),
    prefill=Schedule(4, 2, 2), token_positions=4, eager_token_positions=2, sampled_steps=6, probe_steps=3,
    hook_calls=2000,
)  # fmt: skip


def dense_cases(sizes: Sizes, scale: float) -> list[Case]:
    """Most important first."""
    batch = sizes.batch
    return [
        Case("graph_every_step", "every_step", "graph", batch, passes(sizes.graph, 8, scale)),
        Case("graph_steps_only", "steps_only", "graph", batch, passes(sizes.graph, 12, scale)),
        Case(
            "eager_prefill_every_step", "every_step", "prefill", sizes.prefill_batch, passes(sizes.prefill, 12, scale)
        ),
        Case("eager_decode_every_step", "every_step", "eager", batch, passes(sizes.eager, 10, scale)),
        Case("graph_default_batch_1", "default", "graph", 1, passes(sizes.graph, 10, scale)),
        Case("eager_default", "default", "eager", batch, passes(sizes.eager, 10, scale)),
        Case("eager_steps_only", "steps_only", "eager", batch, passes(sizes.eager, 10, scale)),
    ]


def default_case(sizes: Sizes) -> Case:
    """The one that is claimed; as many passes as its interval of confidence needs."""
    return Case("graph_default", "default", "graph", sizes.batch, dataclasses.replace(sizes.graph, passes=4))


def moe_cases(sizes: Sizes, scale: float) -> list[Case]:
    return [
        Case("graph_default_moe", "default", "graph", sizes.batch, passes(sizes.graph, 16, scale)),
        Case("graph_every_step_moe", "every_step", "graph", sizes.batch, passes(sizes.graph, 8, scale)),
    ]


def passes(schedule: Schedule, wanted: int, scale: float) -> Schedule:
    return dataclasses.replace(schedule, passes=max(2, 2 * round(wanted * scale / 2)))


class Plugin:
    """lightllm-otel in this process, before LightLLM is imported, and all that is used of its inside."""

    def __init__(self, folder: Path, graph_batches: Sequence[int]) -> None:
        os.environ |= {
            "LIGHTLLM_OTEL": "1", "LIGHTLLM_OTEL_DIR": str(folder), "LIGHTLLM_OTEL_RING_MIB": "64",
            "LIGHTLLM_OTEL_GRAPH_BATCH_SIZES": ",".join(map(str, graph_batches)),
        }  # fmt: skip
        self.grown: dict[str, Grown] = {}
        with self._weighing("cupy"), contextlib.suppress(ImportError):
            importlib.import_module("cupy")
        with self._weighing("modules"):
            from lightllm_otel.inject import bootstrap
            from lightllm_otel.worker import session
            from lightllm_otel.worker.host.instrumented_graphs import InstrumentedGraphs

        for owner, names in ((session.ServerSession, ("attach", "serve")), (InstrumentedGraphs, ("plan", "capture"))):
            for name in names:
                setattr(owner, name, self._weighed(getattr(owner, name), name))
        self._hooks: Any = bootstrap.activate()

    def _weighed(self, host: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(host)
        def weighed(*args: Any, **kwargs: Any) -> Any:
            with self._weighing(name):
                return host(*args, **kwargs)

        return weighed

    @contextlib.contextmanager
    def _weighing(self, name: str) -> Iterator[None]:
        before = Grown.now()
        try:
            yield
        finally:
            self.grown[name] = self.grown.get(name, Grown()) + (Grown.now() - before)

    @functools.cached_property
    def session(self) -> Any:
        return self._hooks.session()

    @property
    def header(self) -> Any:
        return self.session._prepared[1].header[0]

    def follow(self, setting: Setting) -> None:
        """From the next forward on."""
        from lightllm_otel.records.control import Order

        self.session.follow(Order(0, setting.level, setting.every))

    def switch(self, setting: Setting) -> Callable[[bool], None]:
        return lambda on: self.follow(setting if on else OFF)

    def sampled(self, setting: Setting, first: int, positions: Sequence[int]) -> int:
        """How many of the decode steps at these positions have their operators timed; ``first``: number of position 0."""
        from lightllm_otel.worker.sampling import Sampling

        if setting.level is not Level.OPERATORS:
            return 0
        return sum(Sampling(setting.every).due(first + at, Phase.DECODE, 0) for at in positions)

    def facts(self) -> dict[str, Any]:
        header = self.header
        return {
            "dropped": {reason.value: int(header["dropped"][reason.code]) for reason in DropReason},
            "errors": [int(count) for count in header["errors"]], "whole_only": [int(each) for each in header["step_only"]],
            "steps": int(header["steps"]), "sampled_steps": int(header["sampled_steps"]),
            "hook_seconds": round(float(header["hook_seconds"]), 4),
            "twins": self.session.instrumented_graphs.facts(),
            **{f"{field.name}_mib": {name: round(getattr(grown, field.name), 2) for name, grown in self.grown.items()}
               for field in dataclasses.fields(Grown)},
        }  # fmt: skip


def measure(
    arguments: argparse.Namespace, sizes: Sizes, cases: list[Case], shape: str, work: Path, keep: Keep, details: bool
) -> None:
    """All of one shape. ``keep`` is given rows as soon as there are some: what is measured counts, whatever comes next.

    ``details``: also what a step's cost consists of.
    """
    from workers import build, say, stay_on_one_core

    graph_batches = sorted({case.batch for case in cases if case.what == "graph"})
    plugin = Plugin(work, graph_batches)
    model = build(arguments, shape, sizes.total_tokens, graph_batches)
    with model:
        say(f"{shape} built; instrumented graphs {plugin.session.instrumented_graphs.facts()}")
        warm_up(model, plugin, sizes, cases)
        stay_on_one_core()
        keep([{"kind": "cores", "cores": sorted(os.sched_getaffinity(0)), "of": os.cpu_count()}])
        keep(tokens(model, plugin, sizes, shape))
        say("tokens compared")
        if details:
            from plugin_parts import critical_path, hook_calls, step_reader

            keep(critical_path(model, plugin, sizes))
            keep(step_reader(model, plugin, sizes))
            keep(hook_calls(plugin, sizes.hook_calls))
            say("what a step's cost consists of")
        for case in cases:
            began = time.perf_counter()
            about, found = measure_case(model, plugin, sizes, case)
            keep([about, *rows_of(case.name, found)])
            say(f"{case.name}: {time.perf_counter() - began:.1f} s")
        keep([{"kind": "plugin", "shape": shape, "layers": model.model.layers_num, **plugin.facts()}])


def measure_default(
    arguments: argparse.Namespace, sizes: Sizes, work: Path, keep: Keep, seconds: float, half_width: float
) -> None:
    """The default setting alone, until its interval of confidence is ``half_width`` points to each side, or time is up."""
    from workers import build, say, stay_on_one_core

    began = time.perf_counter()
    case = default_case(sizes)
    plugin = Plugin(work, [case.batch])
    with build(arguments, arguments.shape, sizes.total_tokens, [case.batch]) as model:
        warm_up(model, plugin, sizes, [case])
        stay_on_one_core()
        found: list[pairing.Cell] = []
        rows: Rows = []
        done = 0
        while True:
            about, more = measure_case(model, plugin, sizes, case, first=done)
            found += more
            cells = pairing.cell_rows(case.name, more)
            keep([about, *cells])
            rows += cells
            done += case.schedule.passes
            estimate = pairing.throughput_loss(pairing.Sample.of_rows(rows))
            width = (estimate.high - estimate.low) / 2
            if done % 16 == 0:
                say(f"{done} passes: {estimate.value:.3f} % ± {width:.3f}")
            # The width decides when it ends, never the value.
            if (done >= MIN_PASSES and width <= half_width) or time.perf_counter() - began > seconds:
                break
        keep([pairing.tail_row(case.name, found)])
        keep([{"kind": "plugin", "shape": arguments.shape, "layers": model.model.layers_num, **plugin.facts()}])


def warm_up(model: Any, plugin: Plugin, sizes: Sizes, cases: list[Case]) -> None:
    """Kernels are compiled and tuned in the first step of each kind."""
    for what, batch in sorted({(case.what, case.batch) for case in cases}):
        tokens = sizes.prefill_tokens if what == "prefill" else sizes.input_tokens
        each = Batch(model, batch, tokens, graphs=what != "eager")
        for setting in (OFF, *SETTINGS.values()):
            plugin.follow(setting)
            with each.prepared():
                straight(2, each.begin, each.prefill if what == "prefill" else each.decode)
    plugin.follow(OFF)


def measure_case(
    model: Any, plugin: Plugin, sizes: Sizes, case: Case, first: int = 0
) -> tuple[dict[str, Any], list[pairing.Cell]]:
    """What was measured, and its cells. ``first``: how many passes of the case there were before."""
    setting, schedule, firsts = SETTINGS[case.setting], case.schedule, list[int]()
    if case.what == "prefill":
        batch = Batch(model, case.batch, sizes.prefill_tokens)
        seconds = batch.prefills(schedule, plugin.switch(setting))
    else:
        batch = Batch(model, case.batch, sizes.input_tokens, graphs=case.what == "graph")
        seconds = batch.decodes(
            schedule, plugin.switch(setting), lambda: firsts.append(plugin.session.forwards.completed)
        )
    about = {
        "case": case.name, "kind": "case", **dataclasses.asdict(setting), "level": setting.level.value,
        "mode": case.what, "batch": case.batch, "input_tokens": batch.input_tokens,
        **dataclasses.asdict(schedule), **sampled_share(plugin, setting, schedule, firsts),
    }  # fmt: skip
    found = pairing.cells(schedule, seconds)
    return about, [dataclasses.replace(cell, passes=cell.passes + first // 2) for cell in found]


def rows_of(case: str, found: Sequence[pairing.Cell]) -> Rows:
    return [pairing.tail_row(case, found), *pairing.cell_rows(case, found)]


def sampled_share(plugin: Plugin, setting: Setting, schedule: Schedule, firsts: Sequence[int]) -> dict[str, Any]:
    """Chance decides how many of the steps that count are sampled ones; it should be near one in ``every``."""
    on = sampled = 0
    for number, first in enumerate(firsts):
        counted = [at for at in range(schedule.positions) if schedule.is_on(number, at) and schedule.counts(at)]
        on, sampled = on + len(counted), sampled + plugin.sampled(setting, first, counted)
    return {"sampled_percent": round(100 * sampled / on, 3)} if on else {}


# The same tokens -------------------------------------------------------------------------------------------------------


def tokens(model: Any, plugin: Plugin, sizes: Sizes, shape: str) -> Rows:
    """The same batch, first twice without anything, then with each setting: is any token another one?"""
    rows: Rows = []
    for what, positions in (("graph", sizes.token_positions), ("eager", sizes.eager_token_positions)):
        batch = Batch(model, sizes.batch, sizes.input_tokens, graphs=what == "graph")
        plugin.follow(OFF)
        reference = batch.tokens(positions)
        for name, setting in {"off": OFF, **SETTINGS}.items():
            plugin.follow(setting)
            answer = batch.tokens(positions)
            rows.append({
                "kind": "tokens", "shape": shape, "mode": what, "setting": name, "batch": sizes.batch,
                "tokens_compared": sum(map(len, answer)), "identical": answer == reference, "digest": digest(answer),
            })  # fmt: skip
        plugin.follow(OFF)
    return rows


def stock_tokens(model: Any, sizes: Sizes, shape: str) -> Rows:
    """The same batches twice from a process that has never had the plugin."""
    rows: Rows = []
    for what, positions in (("graph", sizes.token_positions), ("eager", sizes.eager_token_positions)):
        batch = Batch(model, sizes.batch, sizes.input_tokens, graphs=what == "graph")
        for repetition in range(2):
            answer = batch.tokens(positions)
            rows.append({
                "kind": "stock_tokens", "shape": shape, "mode": what, "batch": sizes.batch, "repetition": repetition,
                "tokens_compared": sum(map(len, answer)), "digest": digest(answer),
            })  # fmt: skip
    return rows


def digest(answer: Any) -> str:
    """Of token ids, for comparison with those of another process."""
    return hashlib.sha256(repr(answer).encode()).hexdigest()[:16]
