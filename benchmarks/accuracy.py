"""Operator times of lightllm-otel beside NVIDIA's CUPTI: the same model, the same steps, kernel by kernel.

    python benchmarks/accuracy.py --source CHECKOUT --out benchmarks/results

Needs a GPU, lightllm-otel in this Python, LightLLM's packages and a checkout of the current LightLLM. Every shape runs in
a process of its own. In it each batch size is run twice from the same prompts: first, before CUPTI is loaded, with the
plugin alone, then under torch.profiler. In both, decode steps that replay the plugin's instrumented graph (the twin)
alternate with steps that replay LightLLM's own (plain), followed by decode steps without graphs.

What CUPTI saw becomes time per operator like this. In a twin the plugin's stamps lie between the operators' kernels.
Without the stamps its kernels must be those of the plain graph, by name and position; so they tell which kernel of the
plain graph is which operator. Without graphs, a last pass with an annotation around every slot tells that, and again
names and positions must be equal. An operator lasts from the end of the previous operator's last kernel to the end of
its own. Where names differ nothing is compared, and the row says so.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "deploy" / "demo")]

import outcome  # noqa: E402
from kernels import (  # noqa: E402
    ANNOTATION,
    Kernel,
    Mismatch,
    Times,
    attributed,
    end_to_end,
    find,
    kernels_in,
    kernels_of_twins,
    launched,
    mean,
    read_trace,
    stamp_to_stamp,
    steps_between_markers,
)

from lightllm_otel.ring import layout  # noqa: E402
from lightllm_otel.vocabulary import Level, Mode, Operator, Phase  # noqa: E402

SHAPES = ("llama-7b", "llama-13b", "llama-8b-gqa", "qwen3-moe")
ALL_LAYERS = ("llama-7b",)  # the shape whose every layer is run, unless --layers says otherwise
CUT_LAYERS = 8
BATCHES = (1, 8, 20, 64)
INPUT_TOKENS = 256
PREFILLS = 2
EAGER_STEPS = 8
DROPPED_STEPS = 2  # of each kind, at the start of a pass
MAX_LENGTH = 4096  # what LightLLM's graphs are captured for

GAP, SAMPLING = Operator.GAP.value, Operator.SAMPLING.value
TWIN, PLAIN, EAGER, PREFILL = "twin", "plain", "eager", "prefill"


# What the plugin says --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Ours:
    """Means over steps, of one operator: seconds and calls per step; the share of calls that found the GPU waiting."""

    seconds: float
    calls: float
    starved: float


Step = tuple[Any, np.ndarray]


def ours(steps: Sequence[Step]) -> dict[str, Ours]:
    intervals = np.concatenate([intervals for _, intervals in steps])
    found = {}
    for operator in Operator:
        own = intervals[intervals["operator"] == operator.code]
        if len(own):
            starved = float(((own["flags"] & layout.STARVED) != 0).mean())
            found[operator.value] = Ours(float(own["seconds"].sum()) / len(steps), len(own) / len(steps), starved)
    return found


def label_of(step: Any) -> str:
    """What kind of step the ring says this was."""
    sampled = bool(step["flags"] & layout.SAMPLED)
    if step["phase"] == Phase.PREFILL.code:
        return PREFILL if sampled else "prefill that was not sampled"
    if step["mode"] == Mode.GRAPH.code:
        return TWIN if sampled else PLAIN
    return EAGER if sampled else "eager step that was not sampled"


@dataclasses.dataclass
class Pass:
    """A batch size run once: what each step was meant to be, what the ring says, and under CUPTI its kernels."""

    labels: list[str]
    ring: list[Step]
    tokens: list[list[int]]
    kernels: list[list[Kernel]] | None = None

    def __post_init__(self) -> None:
        seen = [label_of(step) for step, _ in self.ring]
        if seen != self.labels:
            wrong = next((f"{a}, not {b}" for a, b in zip(seen, self.labels) if a != b), "")
            raise Mismatch(f"the ring has {len(seen)} steps of {len(self.labels)}; the first that is wrong: {wrong}")
        if self.kernels is not None and len(self.kernels) != len(self.labels):
            raise Mismatch(f"CUPTI saw {len(self.kernels)} steps of {len(self.labels)}")

    def steps(self, label: str) -> list[Step]:
        return [self.ring[at] for at in self._chosen(label)]

    def kernels_of(self, label: str) -> list[list[Kernel]]:
        assert self.kernels is not None
        return [self.kernels[at] for at in self._chosen(label)]

    def _chosen(self, label: str) -> list[int]:
        chosen = [at for at, each in enumerate(self.labels) if each == label]
        return chosen[DROPPED_STEPS if label in (TWIN, PLAIN) else 0 :]


# Comparisons -----------------------------------------------------------------------------------------------------------


def graph_rows(
    case: dict[str, Any], alone: Pass, under: Pass, operators: Sequence[str], boundary_cost: float
) -> list[dict[str, Any]]:
    """``alone``: without CUPTI. ``operators``: of each interval of the twin. A row per operator, and one for the case."""
    twins, plains = under.kernels_of(TWIN), under.kernels_of(PLAIN)
    expected = kernels_of_twins(twins, operators)
    names, owners = [name for name, _ in expected], [operator for _, operator in expected]
    cupti = mean([end_to_end(find(names, plain), owners) for plain in plains])
    raw_cupti = mean([stamp_to_stamp(twin, operators) for twin in twins])
    mine, mine_alone = ours(under.steps(TWIN)), ours(alone.steps(TWIN))
    compared = [operator for operator in cupti if operator != GAP and operator in mine]
    rows = []
    for operator, own in _shares(compared, mine, cupti).items():
        alone_row = _shares(compared, mine_alone, cupti)[operator]
        calls = mine[operator].calls
        raw = mine[operator].seconds + boundary_cost * operators.count(operator)
        rows.append({
            **case, "mode": "decode graph", "operator": operator, **own,
            **{f"{name}_without_cupti": alone_row[name]
               for name in ("ours_us", "error_us", "error_percent", "share_error_points")},
            "raw_ours_us": _us(raw / calls), "raw_cupti_us": _us(raw_cupti[operator].seconds / calls),
            "raw_error_us": _us((raw - raw_cupti[operator].seconds) / calls),
            "kernels": owners.count(operator),
        })  # fmt: skip
    summed = sum(mine[operator].seconds for operator in compared)
    summed_cupti = sum(cupti[operator].seconds for operator in compared)
    rows.append({
        **case, "mode": "decode graph", "problem": "", "kernels": len(names), "stamps": len(operators) + 1,
        "not_compared": sorted((set(mine) | set(cupti)) - set(compared)),
        "tokens_identical": alone.tokens == under.tokens,
        "operators_ours_ms": _ms(summed), "operators_cupti_ms": _ms(summed_cupti),
        "operators_error_percent": _percent(summed - summed_cupti, summed_cupti),
        **_whole_steps(under, PLAIN),
        **_bookkeeping(under.steps(TWIN)),
        **{f"{name}_without_cupti": value for name, value in _bookkeeping(alone.steps(TWIN)).items()},
        "boundary_cost_us": _us(boundary_cost),
        "step_by_operator_us": {operator: _us(own.seconds) for operator, own in mine_alone.items()},
        "distortion_percent": _distortion(alone), "distortion_percent_under_cupti": _distortion(under),
    })  # fmt: skip
    return rows


def eager_rows(
    case: dict[str, Any],
    label: str,
    alone: Pass,
    under: Pass,
    expected: Sequence[tuple[str, str]],
    graph: Sequence[tuple[str, str]] | None = None,
) -> list[dict[str, Any]]:
    """The same for steps without graphs. ``expected``: ``(kernel, operator)`` in order, from the annotated pass.

    ``graph``: the same of the twin, a second witness, for which the stamps decide and not the host's launches.
    """
    mode = "prefill eager" if label == PREFILL else "decode eager"
    # From the first operator to the last: what is around them waits for the host on both sides, each in its own way.
    inside = [at for at, (_, operator) in enumerate(expected) if operator not in (GAP, SAMPLING)]
    names, owners = (list(each) for each in zip(*expected[inside[0] : inside[-1] + 1]))
    cupti = mean([end_to_end(find(names, launched(step)), owners) for step in under.kernels_of(label)])
    mine, mine_alone = ours(under.steps(label)), ours(alone.steps(label))
    compared = [operator for operator in cupti if operator != GAP and operator in mine]
    rows = []
    for operator, own in _shares(compared, mine, cupti).items():
        idle = cupti[operator].seconds - cupti[operator].busy
        rows.append({
            **case, "mode": mode, "operator": operator, **own,
            "ours_us_without_cupti": _us(mine_alone[operator].seconds / mine_alone[operator].calls),
            "cupti_busy_us": _us(cupti[operator].busy / mine[operator].calls),
            "cupti_idle_us": _us(idle / mine[operator].calls),
            "cupti_idle_percent": _percent(idle, cupti[operator].seconds),
            "starved_percent": round(100 * mine[operator].starved, 1),
            "starved_percent_without_cupti": round(100 * mine_alone[operator].starved, 1),
            "kernels": owners.count(operator),
        })  # fmt: skip
    rows.append({
        **case, "mode": mode, "problem": "", "kernels": len(names),
        "not_compared": sorted((set(mine) | set(cupti)) - set(compared)),
        "same_attribution_as_graph": None if graph is None else _in_the_model(expected) == _in_the_model(graph),
        **_whole_steps(under, label), **_bookkeeping(under.steps(label)),
        **{f"{name}_without_cupti": value for name, value in _bookkeeping(alone.steps(label)).items()},
    })  # fmt: skip
    return rows


def _in_the_model(kernels: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, operator) for name, operator in kernels if operator not in (GAP, SAMPLING)]


def _shares(compared: Sequence[str], mine: dict[str, Ours], cupti: Times) -> dict[str, dict[str, Any]]:
    """Per operator: mean of a call on both sides, and its share of all compared operators."""
    whole = sum(mine[operator].seconds for operator in compared)
    whole_cupti = sum(cupti[operator].seconds for operator in compared)
    rows = {}
    for operator in compared:
        own, other = mine[operator], cupti[operator].seconds
        share, share_cupti = 100 * own.seconds / whole, 100 * other / whole_cupti
        rows[operator] = {
            "calls": own.calls, "ours_us": _us(own.seconds / own.calls), "cupti_us": _us(other / own.calls),
            "error_us": _us((own.seconds - other) / own.calls), "error_percent": _percent(own.seconds - other, other),
            "share_percent": round(share, 4), "share_cupti_percent": round(share_cupti, 4),
            "share_error_points": round(share - share_cupti, 4),
        }  # fmt: skip
    return rows


def _whole_steps(under: Pass, label: str) -> dict[str, Any]:
    """The plugin's whole steps, by events, beside first start to last end of all kernels and copies of the same steps."""
    mine = float(np.mean([float(step["seconds"]) for step, _ in under.steps(label)]))
    spans = [max(kernel.end for kernel in step) - step[0].start for step in under.kernels_of(label)]
    cupti = float(np.mean(spans)) * 1e-9
    return {
        "step_ours_ms": _ms(mine), "step_cupti_ms": _ms(cupti), "step_error_percent": _percent(mine - cupti, cupti),
    }  # fmt: skip


def _bookkeeping(steps: Sequence[Step]) -> dict[str, Any]:
    """Closure, gap and the smallest interval, of steps whose operators were timed."""
    seconds = [float(step["seconds"]) for step, _ in steps]
    closure = [float(step["closure_seconds"]) for step, _ in steps]
    intervals = np.concatenate([intervals for _, intervals in steps])
    gap = intervals[intervals["operator"] == Operator.GAP.code]["seconds"]
    return {
        "steps": len(steps),
        "closure_percent": round(100 * sum(closure) / sum(seconds), 4),
        "closure_percent_worst_step": round(min(100 * a / b for a, b in zip(closure, seconds)), 4),
        "gap_percent": round(100 * float(gap.sum()) / sum(seconds), 4),
        "min_interval_us": _us(float(intervals["seconds"].min())),
        "negative_intervals": int((intervals["seconds"] < 0).sum()),
    }


def _distortion(run: Pass) -> float:
    """How much longer a step takes on the GPU when it replays the twin; both by the plugin's own whole-step events."""
    twin, plain = (np.median([float(step["seconds"]) for step, _ in run.steps(label)]) for label in (TWIN, PLAIN))
    return round(100 * (float(twin) / float(plain) - 1), 4)


def _us(seconds: float) -> float:
    return round(1e6 * seconds, 4)


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 5)


def _percent(part: float, whole: float) -> float | None:
    return round(100 * part / whole, 4) if whole else None


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures that are claimed: decode in CUDA graphs, our twin beside CUPTI's plain graph."""
    graph = [row for row in rows if row.get("mode") == "decode graph"]
    operators = [row for row in graph if "operator" in row]
    cases = [row for row in graph if "operator" not in row and not row["problem"]]
    negative = [row[name] for row in rows for name in row if name.startswith("negative_intervals")]
    by_case = {
        _case_name(case): {
            **_errors([row for row in operators if _case_name(row) == _case_name(case)]),
            **{name: case[name] for name in (
                "closure_percent_without_cupti", "gap_percent_without_cupti", "distortion_percent",
                "operators_error_percent", "step_error_percent", "min_interval_us",
                "tokens_identical",
            )},
        }
        for case in cases
    }  # fmt: skip
    return {
        # Of the worst case: a figure that some batch size does not keep is not claimed.
        **{name: max((each[name] for each in by_case.values()), default=None) for name in _errors([])},
        # CUPTI delays the launch of a graph by more than all that is measured here.
        "step_closure_percent": min((case["closure_percent_without_cupti"] for case in cases), default=None),
        "step_closure_percent_under_cupti": min((case["closure_percent"] for case in cases), default=None),
        "clock_check_median_us": _median([abs(row["raw_error_us"]) for row in operators]),
        "clock_check_max_us": max((abs(row["raw_error_us"]) for row in operators), default=None),
        "gap_percent_max": max((case["gap_percent_without_cupti"] for case in cases), default=None),
        "distortion_percent_by_case": {_case_name(case): case["distortion_percent"] for case in cases},
        "negative_intervals": sum(negative),
        "eager": {mode: _eager(rows, mode) for mode in ("decode eager", "prefill eager")},
        "problems": [f"{_case_name(row)}, {row['mode']}: {row['problem']}" for row in rows if row.get("problem")],
        "by_case": by_case,
        "operators": {
            _case_name(case): {
                row["operator"]: {
                    "ours_us": round(row["ours_us_without_cupti"], 2), "cupti_us": round(row["cupti_us"], 2),
                    "error_us": round(row["error_us_without_cupti"], 2), "calls": int(row["calls"]),
                }
                for row in operators
                if _case_name(row) == _case_name(case)
            }
            for case in cases
        },
    }  # fmt: skip


def _errors(operators: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        f"{name}{kind}": figure
        for kind in ("", "_without_cupti")
        for name, figure in (
            ("median_error_us", _median([abs(row[f"error_us{kind}"]) for row in operators])),
            ("median_error_percent", _median([abs(row[f"error_percent{kind}"] or 0) for row in operators])),
            ("max_share_error_points", max((abs(row[f"share_error_points{kind}"]) for row in operators), default=None)),
        )
    }


def _eager(rows: Sequence[dict[str, Any]], mode: str) -> dict[str, Any]:
    own = [row for row in rows if row.get("mode") == mode and "operator" in row]
    return {
        "median_error_us": _median([abs(row["error_us"]) for row in own]),
        "median_error_percent": _median([abs(row["error_percent"] or 0) for row in own]),
        "median_idle_percent": _median([row["cupti_idle_percent"] or 0 for row in own]),
    }


def _median(values: Sequence[float]) -> float | None:
    return round(float(np.median(values)), 4) if len(values) else None


def _case_name(row: dict[str, Any]) -> str:
    return f"{row['shape']}, batch {row['batch']}" if "batch" in row else row["shape"]


# Running ---------------------------------------------------------------------------------------------------------------


class Plugin:
    """lightllm-otel in this process, and all that is used of its inside: what changes with it changes here."""

    NEVER = 10**9

    def __init__(self, folder: Path, batches: Sequence[int]) -> None:
        """Before LightLLM is imported."""
        from lightllm_otel.activate import bootstrap

        self._folder = folder
        os.environ |= {
            "LIGHTLLM_OTEL": "1", "LIGHTLLM_OTEL_DIR": str(folder), "LIGHTLLM_OTEL_SAMPLE_EVERY": "1",
            "LIGHTLLM_OTEL_RING_MIB": "64", "LIGHTLLM_OTEL_GRAPH_BATCH_SIZES": ",".join(map(str, batches)),
        }  # fmt: skip
        self._hooks: Any = bootstrap.activate()
        self._reader: Any = None

    @property
    def session(self) -> Any:
        return self._hooks.session()

    def sample(self, due: bool) -> None:
        """From the next step on: all of them, or (but for large prefills) none."""
        from lightllm_otel.ring.control import Order

        self.session.follow(Order(0, Level.OPERATORS, 1 if due else self.NEVER))

    def read(self) -> list[Step]:
        """The steps since the last call, to the last one."""
        import torch

        from lightllm_otel.ring.reader import RingReader

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.session.timer.tick()
        if self._reader is None:
            self._reader = RingReader(next(self._folder.glob("*/rank-0.ring")))
        return layout.steps_in(self._reader.read())

    def operators(self, batch: int) -> list[str]:
        """Of each interval of the twin for this batch size; the first mark only begins."""
        marks = self.session.timer.marks._marks
        twins = self.session.twins
        if batch not in twins.by_size:
            raise Mismatch(f"no twin for batch size {batch}: {twins.state}, {twins.reason}")
        return [marks[code].operator.value for code in twins.by_size[batch].twin.codes[1:]]

    def boundary_cost(self) -> float:
        """Seconds that are subtracted for every boundary in a twin."""
        return float(self._reader.header["stamp_cost"])

    def live_distortion(self, steps: Sequence[Step]) -> float | None:
        """What lightllm_otel_distortion_ratio would be after these steps, less 1, in percent."""
        from lightllm_otel.aggregate.distortion import Distortion

        live = Distortion()
        live.add(np.array([step for step, _ in steps], layout.STEP))
        return _percent(live.ratio - 1, 1) if live.ratio is not None else None

    def facts(self) -> dict[str, Any]:
        header = self._reader.header
        return {
            "clock_quantum_us": _us(float(header["clock_quantum"])),
            "boundary_cost_us": _us(float(header["boundary_cost"])),
            "stamp_quantum_us": _us(float(header["stamp_quantum"])), "stamp_cost_us": _us(float(header["stamp_cost"])),
            "dropped": header["dropped"].tolist(), "errors": header["errors"].tolist(), "facts": self._reader.facts(),
        }  # fmt: skip


class Runner:
    """The model of one shape, run over and over in the same way."""

    def __init__(self, model: Any, plugin: Plugin, steps: int, graphs: bool = True) -> None:
        self.model = model
        self.plugin = plugin
        self.steps = steps
        self.graphs = graphs
        self.labels: list[str] = []

    def run(self, batch: int, prefills: int, pairs: int, eager: int) -> list[list[int]]:
        """Prefill, then twin and plain steps in turn, then steps without graphs. Returns the tokens."""
        self.labels = []
        for number in range(prefills):
            if number:
                self.model.release()
            self._step(PREFILL, functools.partial(self.model.prefill, batch, INPUT_TOKENS, batch))
        # Plain first and last, so that both kinds see the same context on average, and every twin has plain neighbours.
        for label in [PLAIN, *[TWIN, PLAIN] * pairs] if self.graphs else []:
            self._step(label, self.model.decode)
        with without_graphs(self.model.model):
            for _ in range(eager):
                self._step(EAGER, self.model.decode)
        tokens: list[list[int]] = self.model.tokens
        self.model.release()
        return tokens

    def whole(self, batch: int) -> list[list[int]]:
        """As it is compared."""
        return self.run(batch, PREFILLS, DROPPED_STEPS + self.steps, EAGER_STEPS)

    def _step(self, label: str, step: Callable[[], Any]) -> None:
        self.labels.append(label)
        self.plugin.sample(label != PLAIN)
        step()


@contextlib.contextmanager
def without_graphs(model: Any) -> Iterator[None]:
    graph, model.graph = model.graph, None
    try:
        yield
    finally:
        model.graph = graph


@contextlib.contextmanager
def markers(model: Any) -> Iterator[None]:
    """A kernel that is easily found in a trace, before each forward and after each sampling."""
    import torch
    from lightllm.server.router.model_infer.mode_backend import generic_post_process

    from lightllm_otel.patch.ledger import Ledger

    mark: Any = functools.partial(torch.cuda._sleep, 1) if torch.cuda.is_available() else (lambda: None)

    def before(host: Callable[..., Any]) -> Callable[..., Any]:
        def marked(*args: Any, **kwargs: Any) -> Any:
            mark()
            return host(*args, **kwargs)

        return marked

    def after(host: Callable[..., Any]) -> Callable[..., Any]:
        def marked(*args: Any, **kwargs: Any) -> Any:
            result = host(*args, **kwargs)
            mark()
            return result

        return marked

    ledger = Ledger()
    ledger.replace(model, "forward", before)
    ledger.replace(generic_post_process, "sample", after)
    try:
        yield
    finally:
        ledger.undo()


@contextlib.contextmanager
def annotations(model: Any) -> Iterator[None]:
    """An annotation around every slot of the plugin's table, named after its operator and what leads to it."""
    import torch
    from lightllm.server.router.model_infer.mode_backend import generic_post_process

    from lightllm_otel.patch import slots
    from lightllm_otel.patch.ledger import Ledger

    def wrap(operator: str, lead: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def around(host: Callable[..., Any]) -> Callable[..., Any]:
            def annotated(*args: Any, **kwargs: Any) -> Any:
                with torch.profiler.record_function(f"{ANNOTATION}:{operator}:{lead}"):
                    return host(*args, **kwargs)

            return annotated

        return around

    ledger = Ledger()
    places = [(model.pre_infer, -1, slots.PRE_SLOTS), (model.post_infer, -1, slots.POST_SLOTS)]
    places += [(layer, number, slots.LAYER_SLOTS) for number, layer in enumerate(model.layers_infer)]
    for owner, layer, table in places:
        for slot in table:
            # Before the first layer there is no residual.
            first = layer == 0 and slot.operator is Operator.ATTN_NORM
            lead = GAP if first else slot.leads.value if slot.leads is not None else ""
            for name in slot.names:
                if callable(getattr(owner, name, None)):
                    ledger.replace(owner, name, wrap(slot.operator.value, lead))
    ledger.replace(generic_post_process, "sample", wrap(SAMPLING, GAP))
    try:
        yield
    finally:
        ledger.undo()


@contextlib.contextmanager
def profiled(path: Path, host: bool = False) -> Iterator[None]:
    """torch.profiler with the GPU's activities only, or the host's as well; the trace is at ``path`` afterwards."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CUDA, *([ProfilerActivity.CPU] if host else [])]
    with profile(activities=activities) as profiler:
        yield
        torch.cuda.synchronize()
    profiler.export_chrome_trace(str(path))


def annotated_kernels(runner: Runner, batch: int, path: Path) -> dict[str, list[tuple[str, str]]]:
    """``(kernel, operator)`` in order, of a prefill and of a decode step without graphs."""
    with annotations(runner.model.model), markers(runner.model.model), profiled(path, host=True):
        runner.run(batch, 1, 0, 1)
    runner.plugin.read()
    trace = read_trace(path)
    owners = attributed(trace)
    found = {}
    for label, step in zip(runner.labels, steps_between_markers(kernels_in(trace))):
        lost = [kernel.name for kernel in launched(step) if kernel.launch not in owners]
        if lost:
            raise Mismatch(f"{len(lost)} kernels without a launch on the host, the first: {lost[0][:120]}")
        found[label] = [(kernel.name, owners[kernel.launch]) for kernel in launched(step)]
    return found


def measure_shape(arguments: argparse.Namespace, folder: Path, rows: list[dict[str, Any]]) -> None:
    """Append all rows of one shape. In a process of its own: a process can have one model, and loads CUPTI once."""
    began = time.perf_counter()
    plugin = Plugin(folder / "otel", arguments.batches)
    import checkpoint
    import torch
    from static_model import SPARE, StaticModel

    shape = checkpoint.SHAPES[arguments.shape]
    layers = arguments.layers or (shape.layers if arguments.shape in ALL_LAYERS else min(CUT_LAYERS, shape.layers))
    shape = dataclasses.replace(shape, layers=layers)
    weights = checkpoint.write(folder / "checkpoint", shape, "float16")
    torch.cuda.empty_cache()
    _say(arguments.shape, f"checkpoint written, {time.perf_counter() - began:.1f} s")
    outputs = 2 + 2 * (DROPPED_STEPS + arguments.steps) + EAGER_STEPS
    total = max(max(arguments.batches) * (INPUT_TOKENS + outputs + 1), MAX_LENGTH + SPARE)
    model = StaticModel(
        weights, arguments.source, total, max(arguments.batches), True, nccl_port=arguments.nccl_port,
        max_length=MAX_LENGTH, graph_batches=arguments.batches,
    )  # fmt: skip
    shutil.rmtree(weights)
    twins = plugin.session.twins.facts()
    _say(arguments.shape, f"model built, {time.perf_counter() - began:.1f} s; twins {twins['state']} {twins['reason']}")
    with model:
        runner = Runner(model, plugin, arguments.steps)
        measure_batches(runner, {"shape": arguments.shape, "layers": layers}, arguments.batches, folder, rows)
        rows.append({"shape": arguments.shape, **plugin.facts()})
    _say(arguments.shape, f"done, {time.perf_counter() - began:.1f} s")


def measure_batches(
    runner: Runner, shape: dict[str, Any], batches: Sequence[int], folder: Path, rows: list[dict[str, Any]]
) -> None:
    """Every batch size without CUPTI; then, when it will stay loaded, every batch size with it."""
    for batch in batches:
        runner.run(batch, 1, 1, 2)  # kernels are compiled and tuned in the first step of each kind
    runner.plugin.read()
    alone: dict[int, Pass] = {}
    for batch in batches:
        with _reported(rows, {**shape, "batch": batch, "mode": "without CUPTI"}), markers(runner.model.model):
            tokens = runner.whole(batch)
            alone[batch] = Pass(runner.labels, runner.plugin.read(), tokens)
    for batch, earlier in alone.items():
        case = {**shape, "batch": batch}
        with _reported(rows, {**case, "mode": "under CUPTI"}):
            compare(runner, case, earlier, folder / "trace.json", rows)
        _say(shape["shape"], f"batch {batch} compared")


def compare(runner: Runner, case: dict[str, Any], alone: Pass, trace: Path, rows: list[dict[str, Any]]) -> None:
    """One batch size under CUPTI, beside what it was ``alone``."""
    plugin, batch = runner.plugin, case["batch"]
    with markers(runner.model.model), profiled(trace):
        tokens = runner.whole(batch)
    labels = runner.labels
    under = Pass(labels, plugin.read(), tokens, steps_between_markers(kernels_in(read_trace(trace))))
    graph = None
    with _reported(rows, {**case, "mode": "decode graph"}):
        operators = plugin.operators(batch)
        rows += graph_rows(case, alone, under, operators, plugin.boundary_cost())
        rows[-1]["distortion_percent_live"] = plugin.live_distortion(alone.ring)
        graph = kernels_of_twins(under.kernels_of(TWIN), operators)
    expected = annotated_kernels(runner, batch, trace)
    with _reported(rows, {**case, "mode": "decode eager"}):
        rows += eager_rows(case, EAGER, alone, under, expected[EAGER], graph)
    with _reported(rows, {**case, "mode": "prefill eager"}):
        rows += eager_rows(case, PREFILL, alone, under, expected[PREFILL])


@contextlib.contextmanager
def _reported(rows: list[dict[str, Any]], case: dict[str, Any]) -> Iterator[None]:
    """A comparison that is not possible becomes a row that says why; the others go on."""
    try:
        yield
    except Mismatch as problem:
        rows.append({**case, "problem": str(problem)})


def _say(shape: str, what: str) -> None:
    print(f"{shape}: {what}", flush=True)


def child(arguments: argparse.Namespace, shape: str, rows_file: Path) -> list[dict[str, Any]]:
    """One shape in a process of its own, with nothing of the plugin switched on before it wants to."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LIGHTLLM_OTEL")}
    # CUPTI stays loaded once it is: taking it down and up again is not safe with graphs that exist already.
    environ |= {"DISABLE_CUPTI_LAZY_REINIT": "1", "TEARDOWN_CUPTI": "0", "TOKENIZERS_PARALLELISM": "false"}
    environ.setdefault("LOADWORKER", "8")
    if importlib.util.find_spec("torchvision") is None:  # LightLLM imports it; text needs none of it
        paths = [str(HERE.parent / "deploy" / "demo" / "stand_in"), environ.get("PYTHONPATH", "")]
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    command = [sys.executable, __file__, "--shape", shape, "--source", str(arguments.source), "--rows", str(rows_file)]
    command += ["--batches", *map(str, arguments.batches), "--steps", str(arguments.steps)]
    command += ["--work", str(arguments.work), "--nccl-port", str(arguments.nccl_port)]
    command += ["--layers", str(arguments.layers)] if arguments.layers else []
    status = subprocess.run(command, env=environ, check=False).returncode
    rows: list[dict[str, Any]] = json.loads(rows_file.read_text()) if rows_file.exists() else []
    if status:
        rows.append({"shape": shape, "mode": "all", "problem": f"the process ended with status {status}"})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="a checkout of the current LightLLM")
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--steps", type=int, default=24, help="decode steps with a twin that count")
    parser.add_argument("--layers", type=int, help=f"default: all of {', '.join(ALL_LAYERS)}, {CUT_LAYERS} of others")
    parser.add_argument("--out", type=Path, default=outcome.RESULTS)
    parser.add_argument("--work", type=Path, default=Path("/dev/shm/accuracy"), help="checkpoints, one at a time")
    parser.add_argument("--nccl-port", type=int, default=28765)
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.shape:
        folder = arguments.work / arguments.shape
        folder.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, Any]] = []
        try:
            measure_shape(arguments, folder, rows)
        finally:  # GPU time is dear: what was compared before something went wrong counts
            arguments.rows.write_text(json.dumps(rows, default=float))
        return
    rows = []
    for shape in arguments.shapes:
        folder = arguments.work / shape
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            rows += child(arguments, shape, folder / "rows.json")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        outcome.write("accuracy", summarise(rows), rows, arguments.out)
    summary = summarise(rows)
    print(json.dumps(summary, indent=1))
    sys.exit(bool(summary["problems"]))


if __name__ == "__main__":
    main()
