"""One recording gives the same figures live and offline, and the same as before the package was laid out by process."""

from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import records
import simulated

import lightllm_otel
from lightllm_otel.exporter.hardware import Hardware
from lightllm_otel.exporter.prometheus import GroupCollector
from lightllm_otel.records import layout
from lightllm_otel.records.batch import RecordBatch
from lightllm_otel.records.recording import read_recording
from lightllm_otel.records.vocabulary import Mode, Operator, Phase
from lightllm_otel.reduce import analytic
from lightllm_otel.reduce.group import Group
from lightllm_otel.roofline import shape
from lightllm_otel.tools import cli
from lightllm_otel.tools.analysis.report import report
from lightllm_otel.tools.analysis.runs import load

RECORDINGS = Path(lightllm_otel.__file__).parent / "recordings"
NAMES = ("h200-llama-7b-tp1", "h200-llama-tp2")
STEPS_A_POLL = 40
BEFORE = json.loads((Path(__file__).resolve().parents[1] / "data" / "figures-by-step.json").read_text())
"""Figures of the shipped recordings at commit 4ec940a, which was laid out by step of the data."""
RENAMED = {
    "lightllm_otel_graph_twins": "lightllm_otel_instrumented_graphs",
    '"reason": "no_twin"': '"reason": "not_instrumented"',
    "lightllm_gpu_peak_flops{": "lightllm_gpu_peak_flops_per_second{",
}
SPLIT = ("lightllm_server_info",)  # into identity and state
"""Everything else in CHANGELOG.md adds figures and changes none of these."""


def replayed(path, requests_only=False):
    """The recording as an exporter reads it: some steps of each rank in a poll. A report leaves health checks out."""
    recording, now = read_recording(path), [0.0]
    group = Group(lambda: now[0])
    for rank, facts in recording.facts.items():
        group.set_facts(rank, facts)
    starts = {rank: np.append(layout.starts_in(cells)[0], len(cells)) for rank, cells in recording.cells.items()}
    for first in range(0, max(map(len, starts.values())) - 1, STEPS_A_POLL):
        for rank, cells in recording.cells.items():
            places = np.minimum((first, first + STEPS_A_POLL), len(starts[rank]) - 1)
            batch = RecordBatch.of_cells(cells[slice(*starts[rank][places])])
            group.add(rank, batch.only(batch.steps["tokens"] > 0) if requests_only else batch)
        group.settle()
        now[0] += 0.2
    return group


def exposed(group):
    """``{name and labels: value}`` of ``/metrics``, without what depends on the layout of buckets."""
    families = GroupCollector(group, Hardware(lambda: 0.0), server="s").collect()
    return {
        sample.name + json.dumps(sample.labels, sort_keys=True): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith(("_bucket", "_created"))
    }


def renamed(name):
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name


def differing(before, now, place=""):
    """Places at which a figure of ``before`` is missing now, or another one by more than rounding."""
    if isinstance(before, dict):
        for key, value in before.items():
            if not isinstance(now, dict) or key not in now:
                yield f"{place}/{key} is missing"
            else:
                yield from differing(value, now[key], f"{place}/{key}")
    elif isinstance(before, list):
        if len(before) != len(now):
            yield f"{place} has {len(now)} entries, not {len(before)}"
        for at, (one, other) in enumerate(zip(before, now)):
            yield from differing(one, other, f"{place}/{at}")
    elif isinstance(before, float) and isinstance(now, (int, float)):
        if not math.isclose(before, now, rel_tol=1e-6):
            yield f"{place}: {before} before, {now} now"
    elif before != now:
        yield f"{place}: {before!r} before, {now!r} now"


@pytest.mark.parametrize("name", NAMES)
def test_metrics_of_a_recording_are_those_of_before_the_move(name):
    metrics = BEFORE[name]["metrics"]
    before = {renamed(key): value for key, value in metrics.items() if not key.startswith(SPLIT)}
    assert list(differing(before, exposed(replayed(RECORDINGS / name)))) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_report_on_a_recording_is_that_of_before_the_move(name):
    now = json.loads(json.dumps(report(load(RECORDINGS / name))))
    assert list(differing(BEFORE[name]["report"], now)) == []


def test_a_comparison_is_that_of_before_the_move():
    path, said = str(RECORDINGS / NAMES[0]), io.StringIO()
    with contextlib.redirect_stdout(said):
        assert cli.main(["compare", path, path, "--json"]) == 0
    now = json.loads(said.getvalue())
    assert [each for each in differing(BEFORE["compare"], now) if "/path" not in each] == []


@pytest.fixture(params=[*NAMES, Phase.DECODE, Phase.PREFILL], ids=str)
def path(request, tmp_path):
    """The shipped recordings, which do not say their model's shape, and simulated ones, which do."""
    if isinstance(request.param, str) and request.param in NAMES:
        return RECORDINGS / request.param
    return simulated.write(
        tmp_path / "run", seed=1, ranks=1, phase=request.param, batch=16, context=28, every=3, steps=60
    )


def test_every_figure_that_exporter_and_report_both_have_is_the_same(path):
    group, data = replayed(path, requests_only=True), report(load(path))
    facts = group.facts()
    compared = 0
    for found in data["phases"]:
        phase, mode = Phase(found["phase"]), Mode(found["mode"])
        own, step = group.operators.of(phase, mode), found["step"]
        histogram = group.steps.histograms[phase.code, mode.code]
        assert histogram.count == step["steps"]
        assert histogram.total == pytest.approx(step["mean"] * step["steps"])
        assert own.steps == step["sampled"]
        for row in found["operators"]:
            code = Operator(row["operator"]).code
            assert own.seconds[code] == pytest.approx(row["seconds_per_step"] * own.steps)
            assert own.calls[code] == pytest.approx(row["calls_per_step"] * own.steps)
            assert own.starved[code] == pytest.approx(row["starved"] * own.seconds[code])
            assert own.layers[code] == row["layers"]
            assert own.seconds[code] / own.seconds.sum() == pytest.approx(row["share"])
            assert group.operators.histograms[code, phase.code, mode.code].count == own.calls[code]
            compared += 1
        assert {row["operator"] for row in found["operators"]} == {
            Operator.of(int(code)).value for code in np.flatnonzero(own.calls)
        }
    assert facts["model"] == data["facts"]["model"]
    assert compared > 8
    for phase in Phase:  # FLOPs and bytes live are of all modes of a phase
        for field, peak, sums in (
            ("mfu", data["machine"]["flops"], group.analytic.flops),
            ("mbu", data["machine"]["memory_bytes_per_second"], group.analytic.memory_bytes),
        ):
            offline = sum(
                each["utilisation"][field] * peak * each["step"]["mean"] * each["step"]["steps"]
                for each in data["phases"]
                if each["phase"] == phase.value and each["utilisation"][field] is not None
            )
            live = sum(value for (_, code), value in sums.items() if code == phase.code)
            assert live == pytest.approx(offline)
            assert bool(offline) == (
                path.parent != RECORDINGS and any(e["phase"] == phase.value for e in data["phases"])
            )


def test_flops_of_a_prefill_are_those_of_its_tokens_however_they_divide_into_requests():
    """Of 16 requests with 28 new tokens in all; tokens of each were rounded, to 0.57 or 1.14 times as many."""
    step = np.zeros(1, layout.STEP)
    step["phase"], step["batch"], step["tokens"], step["context"] = Phase.PREFILL.code, 16, 28, 28
    model = shape.from_config(records.FACTS["config"], "llama-7b")
    found = analytic.required(step, model, 1, 2.0)
    tokens_alone = model.layers * 2 * 28 * model.hidden * 3 * 11008
    assert found[Operator.FFN, Phase.PREFILL.code].flops == pytest.approx(tokens_alone)
