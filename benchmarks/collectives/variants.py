"""What links.py and scaling.py have in common: one model build of a tensor-parallel group, and all that is measured in it.

Passes are rank.py's. After them, in the same processes:

- tokens: one batch generated without sampling twice, with the default and with every step sampled; every rank compares.
- overhead: decode steps with sampling switched off and on every few steps, on all ranks at the same forwards, as live
  control does it. Intervals are those of rank 0, compared as pairing.py says. These batches have shorter prompts than the
  passes, so that the prefill of each pass is cheap; a shorter step makes the same cost a larger part of it.

Where a rank is slowed down, a kernel that waits no time at all lies in its graphs also in passes without a delay, two a
layer: it is there in what is compared on both sides.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import collectives
import collectives_claims
import collectives_rows
import numpy as np
import outcome
import pairing
import plugin_cost
import rank
import workers
from alternation import Batch
from collectives_rows import Run
from pairing import Schedule
from plugin_cost import OFF, SETTINGS, Case
from rank import AHEAD, EAGER, GRAPH, PREFILL, Pass

from lightllm_otel.exporter import nvml
from lightllm_otel.exporter.link import link
from lightllm_otel.records import layout
from lightllm_otel.records.vocabulary import Implementation, Operator, Site
from lightllm_otel.reduce.collectives import Collectives
from lightllm_otel.tools.benchmark import machine

Rows = list[dict[str, Any]]
AT_ONCE = 4  # passes of the overhead after which there are rows
CASES = {"default": "graph_default", "every_step": "graph_every_step"}


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is run. ``sizes``: of the passes; ``repeats``: of the shares; ``tokens``: that are compared of each request;
    ``overhead``: its schedule, with prompts of ``overhead_input`` tokens; ``only``: nothing but the passes with a slow rank in
    these modes.
    """

    sizes: rank.Sizes
    repeats: int = 1
    inject: bool = True
    tokens: int = 64
    overhead: Schedule = Schedule(256, 8, 8)  # noqa: RUF009 - frozen
    overhead_input: int = 256
    only: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Variant:
    """``words``: of LightLLM's command line; ``environment``: of its processes; ``needs``: what must move decode's data."""

    words: tuple[str, ...] = ()
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    needs: Implementation | None = None


def passes(plan: Plan, tp: int, graphs: bool) -> list[Pass]:
    """The same on every rank; all modes with a slow rank begin at the same context."""
    sizes, decode = plan.sizes, GRAPH if graphs else EAGER
    made = [Pass("warm", PREFILL, 1)]
    for number in range(0 if plan.only else plan.repeats):
        made += [Pass("share", PREFILL, sizes.prefills)]
        made += [Pass("bandwidth", PREFILL, rank.OWN_PREFILLS, own=True)] if number == 0 else []
        made += [Pass("warm", decode, 3), Pass("share", decode, sizes.share_steps)]
    modes = plan.only or ((GRAPH, EAGER, AHEAD) if graphs else (EAGER, AHEAD))
    for mode in modes if plan.inject else ():
        plain = Pass("plain", mode, sizes.steps)
        made += [Pass("warm", PREFILL, 1), Pass("warm", mode, 2), plain]
        for slow in range(tp):
            made += [Pass("slow", mode, sizes.steps, slow, delay) for delay in sizes.delays]
            made.append(plain)
    return made


# In each rank ----------------------------------------------------------------------------------------------------------


class Attached(plugin_cost.Plugin):
    """The plugin that a rank has already."""

    def __init__(self, hooks: Any) -> None:
        self._hooks = hooks
        self.grown = {}  # nothing of it was loaded while this watched


def run_rank(arguments: argparse.Namespace, variant: Variant, plan: Plan) -> None:
    """All of one rank; also of a variant that is not to be had: it ends after the passes that show it."""
    model_dir = workers.checkpoint_of(arguments.work, arguments.shape, arguments.cpu)
    made = passes(plan, arguments.tp, not arguments.cpu)
    each = rank.Rank(arguments, plan.sizes, made, model_dir, plan.inject, variant.words)

    def go_on(done: list[dict[str, Any]]) -> bool:
        if variant.needs is None or done[-1]["kind"] not in ("share", "plain") or done[-1]["mode"] == PREFILL:
            return True
        return variant.needs in implementations(layout.steps_in(each.cells()), done[-1])

    if not each.run(go_on) or plan.only:
        return
    kept = workers.RowsFile(arguments.folder / f"more-{arguments.rank}.json")
    quiet(arguments.rank)
    plugin = Attached(each._hooks)
    graphs = not arguments.cpu
    kept.keep(compare_tokens(each.model, plugin, plan, graphs))
    workers.say("tokens compared")
    overhead(each.model, plugin, plan, graphs, kept.keep)
    kept.keep([{"kind": "plugin", **plugin.facts()}])
    workers.say("overhead measured")


def quiet(number: int) -> None:
    """A core for this rank, where there are enough; no garbage of the build is looked through again."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 2 * number + 1:
        os.sched_setaffinity(0, {cores[-1 - number]})
    gc.collect()
    gc.freeze()


def compare_tokens(model: Any, plugin: Attached, plan: Plan, graphs: bool) -> Rows:
    sizes, rows = plan.sizes, Rows()
    batch = Batch(model, sizes.batch, sizes.input_tokens, graphs)
    plugin.follow(OFF)
    reference = batch.tokens(plan.tokens - 1)
    for name, setting in (("off", OFF), *((name, SETTINGS[name]) for name in CASES)):
        plugin.follow(setting)
        answer = batch.tokens(plan.tokens - 1)
        rows.append({"kind": "tokens", "setting": name, "batch": sizes.batch, "mode": GRAPH if graphs else EAGER,
                     "tokens_compared": sum(map(len, answer)), "identical": answer == reference})  # fmt: skip
    plugin.follow(OFF)
    return rows


def overhead(model: Any, plugin: Attached, plan: Plan, graphs: bool, keep: Callable[[Rows], None]) -> None:
    """The settings in turns: if time is up, there are rows of each."""
    found: dict[str, list[pairing.Cell]] = {name: [] for name in CASES}
    sizes = plugin_cost.Sizes(batch=plan.sizes.batch, input_tokens=plan.overhead_input)
    for done in range(0, plan.overhead.passes, AT_ONCE):
        part = dataclasses.replace(plan.overhead, passes=min(AT_ONCE, plan.overhead.passes - done))
        for name, own in found.items():
            case = Case(CASES[name], name, "graph" if graphs else "eager", sizes.batch, part)
            about, cells = plugin_cost.measure_case(model, plugin, sizes, case, first=done)
            own.extend(cells)
            keep([about, *pairing.cell_rows(case.name, cells)])
    keep([pairing.tail_row(CASES[name], own) for name, own in found.items()])


# From what the ranks left ----------------------------------------------------------------------------------------------


def implementations(steps: Sequence[Any], each: dict[str, Any]) -> set[Implementation]:
    """Which libraries moved the data of the layers' all_reduce in the steps of a pass, as the plugin recorded it."""
    codes: set[int] = set()
    for step, intervals in steps:
        if each["first"] <= step["number"] <= each["last"] and len(intervals):
            inside = (intervals["operator"] == Operator.ALL_REDUCE.code) & (intervals["layer"] >= 0)
            codes |= set(intervals["implementation"][inside].tolist())
    return {Implementation.of(code) for code in codes}


def left_rows(folder: Path, tp: int) -> Rows:
    """collectives.py's rows, and beside them of each pass what was moved; ``pass`` tells repeated ones apart."""
    run = Run.read(folder, tp)
    rows: Rows = [
        {"kind": "topology", **topology([each["facts"] for each in run.left]), "transports": transports(folder)}
    ]
    rows += [row for row in collectives_rows.rows_of(run, tp) if row["kind"] != "share"]
    for number, each in enumerate(run.left[0]["passes"]):
        if each["kind"] == "share":
            rows += [{"pass": number, **row} for row in (moved_row(run, each), *collectives_rows.share_rows(run, each))]
    rows.append({"kind": "ring", "overwrites": [each["overwrites"] for each in run.left],
                 "dropped": [each["dropped"] for each in run.left]})  # fmt: skip
    for number in range(tp):
        path = folder / f"more-{number}.json"
        more = json.loads(path.read_text()) if path.exists() else []
        rows += [{"rank": number, **row} for row in more if number == 0 or row["kind"] in ("tokens", "plugin")]
    return rows


def moved_row(run: Run, each: dict[str, Any]) -> dict[str, Any]:
    """Of the layers' all_reduce in a pass: what a call moves and takes, by whom, and the bus bandwidth as it is exported."""
    matched, found = run.of(each), Collectives()
    for step in matched:
        found.add(step, *run.clock(each["mode"]))
    at = [here for here in found.transfer if here[0] in (Site.ATTENTION.code, Site.FFN.code)]
    took = sum(found.transfer[here].total for here in at)
    inside = [step.calls[collectives_rows.in_layers(step)] for step in matched]
    how = set().union(*(implementations(steps, each) for steps in run.steps))
    whole = [float(intervals["seconds"].sum()) for steps in run.steps for step, intervals in steps
             if each["first"] < step["number"] <= each["last"] and len(intervals)]  # fmt: skip
    calls = {name: value for name, value in collectives_rows.pass_row(run, each).items()
             if name in ("matched", "calls", "transfer_us", "transfer_us_by_step", "wait_us")}  # fmt: skip
    return {
        "kind": "moved", "mode": each["mode"], "steps": each["steps"], "context": each["context"], **calls,
        "calls_of_a_step": len(inside[0]) if inside else 0,
        "payload_bytes": int(inside[0]["payload_bytes"][0]) if inside and len(inside[0]) else None,
        "implementation": sorted(each.value for each in how),
        "bus_bytes_per_second": round(sum(found.bus_bytes[here] for here in at) / took) if took else None,
        "step_us": round(1e6 * float(np.mean(whole)), 3) if whole else None,
    }  # fmt: skip


def topology(facts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How the GPUs of the ranks are joined, as the exporter and ``bench`` have it from NVML."""
    found = link(facts, nvml.load())
    ports = found.ports.values()
    return {
        "link": found.name, "link_kind": found.kind, "path": found.path, "gpu": facts[0].get("gpu_name", ""),
        "nvlink": sorted({each.nvlink for each in ports}), "pcie": sorted({each.pcie for each in ports}),
        "nvlink_bytes_per_second": min((each.nvlink_bytes_per_second for each in ports), default=0.0),
        "pcie_bytes_per_second": min((each.pcie_bytes_per_second for each in ports), default=0.0),
        "matrix": machine.facts().get("links", []),
    }  # fmt: skip


def transports(folder: Path) -> list[str]:
    """What NCCL's log says it goes through."""
    said = [log.read_text(errors="replace") for log in folder.glob("*.log")]
    return sorted({each for text in said for each in re.findall(r"-> \d+\[\w+\].*? via (\S+)", text)})


# What is claimed -------------------------------------------------------------------------------------------------------


def overhead_of(rows: Rows) -> dict[str, Any]:
    """Percent fewer steps per second, with its interval; of the default with the cost of the steps that it samples."""
    samples = {
        name: pairing.Sample.of_rows(cells)
        for name, case in CASES.items()
        if (cells := [row for row in rows if row.get("kind") == "cell" and row["case"] == case])
    }
    found: dict[str, Any] = {}
    for name, sample in samples.items():
        loss = pairing.throughput_loss(sample)
        shares = [row["sampled_percent"] / 100 for row in rows
                  if row.get("kind") == "case" and row["case"] == CASES[name] and "sampled_percent" in row]  # fmt: skip
        if name == "default" and shares and "every_step" in samples:
            loss = pairing.with_rare_steps(sample, float(np.mean(shares)), samples["every_step"], sample)
        value, interval = loss.rounded()
        added, added_interval = pairing.added(sample).rounded(2)
        of_all, of_all_interval = pairing.throughput_loss(
            pairing.Sample.of_rows(
                [row for row in rows if row.get("kind") == "cell" and row["case"] == CASES[name]], False
            )
        ).rounded()
        found[name] = {
            "loss_percent": value, "loss_percent_ci95": interval, "added_us": added, "added_us_ci95": added_interval,
            "loss_percent_all_pairs": of_all, "loss_percent_all_pairs_ci95": of_all_interval,
            "step_us": round(float(sample.means()[1][0]), 1), "pairs": int(sample.pairs.sum()),
        }  # fmt: skip
    return found


def moved(rows: Rows) -> dict[str, dict[str, Any]]:
    """phase → what was moved, and all_reduce's share; of repeated passes the medians."""
    found: dict[str, dict[str, Any]] = {}
    for phase in ("prefill", "decode"):
        own = [row for row in rows if row.get("kind") == "moved" and phase_of(row) == phase and row["transfer_us"]]
        if not own:
            continue
        share = [row["percent"] for row in rows if row.get("kind") == "share" and phase_of(row) == phase
                 and row["operator"] == Operator.ALL_REDUCE.value]  # fmt: skip
        found[phase] = {
            **{name: round(float(np.median([row[name] for row in own])), 3)
               for name in ("transfer_us", "bus_bytes_per_second", "step_us")},
            "wait_us": [round(float(value), 3) for value in np.median([row["wait_us"] for row in own], axis=0)],
            "all_reduce_percent": round(float(np.median(share)), 3) if share else None,
            **{name: own[0][name] for name in ("payload_bytes", "calls_of_a_step", "implementation", "mode", "context", "steps")},
        }  # fmt: skip
    return found


def phase_of(row: dict[str, Any]) -> str:
    return "prefill" if row["mode"] == PREFILL else "decode"


def tokens_identical(rows: Rows) -> bool | None:
    """None where none were compared."""
    own = [row["identical"] for row in rows if row.get("kind") == "tokens"]
    return all(own) if own else None


def common_summary(rows: Rows) -> dict[str, Any]:
    """Of the rows of one build."""
    summary = collectives_claims.summarise(rows)
    ring = [row for row in rows if row.get("kind") == "ring"]
    chosen = ("bus_bandwidth_error_percent", "unmatched", "errors", "dropped", "problems")
    return {
        **moved(rows), "overhead": overhead_of(rows), "tokens_identical": tokens_identical(rows),
        "tokens_compared": sum(
            row["tokens_compared"] for row in rows
            if row.get("kind") == "tokens" and row["setting"] != "off" and row["rank"] == 0  # every rank has the same tokens
        ),
        "overwrites": sum(sum(row["overwrites"]) for row in ring),
        **{name: summary[name] for name in chosen},
    }  # fmt: skip


# Running ---------------------------------------------------------------------------------------------------------------


def parser(about: str | None, work: Path, limit: float) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=about.splitlines()[0] if about else "")
    made.add_argument("--source", type=Path, help="a checkout of the current LightLLM")
    made.add_argument("--cpu", action="store_true", help="only to try this script: times mean nothing")
    made.add_argument("--limit", type=float, default=limit, help="seconds that one build may take")
    made.add_argument("--nccl-port", type=int, default=29065)
    made.add_argument("--work", type=Path, default=work, help="the checkpoint is kept here")
    made.add_argument("--out", type=Path, default=outcome.RESULTS)
    made.add_argument("--merge", nargs="*", type=Path, default=[], help="earlier partial results")
    made.add_argument("--nothing", action="store_true", help="run nothing: make the summary of --merge anew")
    made.add_argument("--child", choices=("checkpoint", "rank"), help=argparse.SUPPRESS)
    made.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    made.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    for switch in ("--one-gpu", "--inject"):
        made.add_argument(switch, action="store_true", help=argparse.SUPPRESS)
    return made


def write_checkpoint(arguments: argparse.Namespace, script: str, words: Sequence[str] = ()) -> None:
    """In a process of its own, which gives its GPU memory back."""
    arguments.work.mkdir(parents=True, exist_ok=True)
    command = [script, "--child", "checkpoint", *collectives.common(arguments), *words]
    problem = workers.run(command, arguments.cpu, max(arguments.limit, 120.0))
    if problem:
        sys.exit(f"no checkpoint: {problem}")
    workers.say("checkpoint is there")


def modules() -> list[str]:
    """Of those that LightLLM's own collectives need, the ones that are there."""
    return [name for name in ("sgl_kernel", "vllm", "lightllm_kernel") if importlib.util.find_spec(name) is not None]


def gpus(cpu: bool) -> int:
    return 0 if cpu else int(outcome.gpu().get("count", 0))
