"""What operators should take, learned from a run: the exporter's own planes, of every load that the run has."""

import json

import numpy as np
import pytest
import simulated

from lightllm_otel.exporter import baseline
from lightllm_otel.records.recording import BadRecording
from lightllm_otel.records.vocabulary import Mode, Operator, Phase
from lightllm_otel.reduce.expectation import SAMPLES, Expectation, understood
from lightllm_otel.tools.analysis import learned
from lightllm_otel.tools.analysis.runs import Run

STEPS = 4 * SAMPLES
FFN = (Operator.FFN.code, Phase.DECODE.code)


def run_of(*repeats):
    return Run("a", None, repeats)


def repeat(seed=0, ranks=1, **options):
    """Of ``ranks`` ranks, with the same load and a noise of their own."""
    generator = np.random.default_rng(seed)
    parts = [simulated.repeat(generator, facts={"tp": ranks}, **{"steps": STEPS, **options}) for _ in range(ranks)]
    facts = {rank: {**parts[0].facts[0], "rank": rank} for rank in range(ranks)}
    return type(parts[0])(None, facts, {rank: part.records for rank, part in enumerate(parts)})


def held_against(planes, measured):
    """{(operator, phase): measured by expected} of the first rank's steps of a repeat."""
    expectation = Expectation()
    expectation.begin(planes, learns=False, ranks=1)
    expectation.add(0, measured.records)
    return {key: expectation.compared[key] / expectation.expected[key] for key in expectation.compared}


def test_every_step_of_the_run_is_expected_and_a_slower_operator_alone_is_slower():
    planes = learned.learn(run_of(repeat(0, run_noise=0), repeat(1, run_noise=0)))
    slow = repeat(2, run_noise=0, slower={Operator.FFN: 1.2})
    ratios = held_against(planes, slow)
    assert ratios.pop(FFN) == pytest.approx(1.2, abs=0.01)
    assert len(ratios) == len(simulated.LAYER)  # the other operators of a layer, and lm_head
    assert all(ratio == pytest.approx(1.0, abs=0.01) for ratio in ratios.values())
    covered = sum(
        float(interval["seconds"]) for interval in slow.intervals if interval["operator"] == Operator.FFN.code
    )
    expectation = Expectation()
    expectation.begin(planes, learns=False, ranks=1)
    expectation.add(0, slow.records)
    assert expectation.compared[FFN] == pytest.approx(covered)


def test_ranks_take_turns_so_that_none_is_the_norm():
    both = repeat(0, ranks=2, run_noise=0, step_noise=0)
    of_rank = both.rank[both.of]
    both.intervals["seconds"][of_rank == 1] *= 3
    ratios = held_against(learned.learn(run_of(both)), repeat(0, run_noise=0, step_noise=0))
    assert ratios[FFN] == pytest.approx(0.5, abs=0.02)


def test_steps_whose_operators_were_not_timed_teach_nothing():
    planes = learned.learn(run_of(repeat(every=2)))
    assert held_against(planes, repeat(every=2))[FFN] == pytest.approx(1.0, abs=0.01)
    with pytest.raises(BadRecording, match="record a longer run"):
        learned.learn(run_of(repeat(every=2, steps=2 * SAMPLES - 2)))


def test_the_file_is_one_of_the_exporters_own(tmp_path):
    run = run_of(repeat(ranks=2))
    planes = learned.learn(run)
    (tmp_path / "good.json").write_text(json.dumps(learned.described(run, planes)))
    kept, key = baseline.read(tmp_path / "good.json")
    assert kept.keys() == planes.keys()
    assert key["model"]
    content = json.loads((tmp_path / "good.json").read_text())
    assert (content["key"]["model"], content["key"]["tp"], content["key"]["link"]) == ("llama-7b", 2, "unknown")
    ((phase, mode, _, _), *_) = understood(content["buckets"])
    assert (phase, mode) == (Phase.DECODE.code, Mode.GRAPH.code)
