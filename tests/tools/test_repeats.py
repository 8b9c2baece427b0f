"""Tests of ``compare --repeats`` with the original observation: only all_reduce in decode differs from run to run."""

import json

import pytest
import simulated

from lightllm_otel.records.vocabulary import Operator
from lightllm_otel.tools import cli


def written(folder, factors):
    """Write a recording for each factor on the time of all_reduce, and return their paths. Other differences are random."""
    return [
        str(
            simulated.write(folder / str(number), number, steps=60, run_noise=0.0, slower={Operator.ALL_REDUCE: factor})
        )
        for number, factor in enumerate(factors)
    ]


def test_repeats_that_agree_are_trusted(tmp_path, capsys):
    written(tmp_path, [1.0] * 5)
    assert cli.main(["compare", "--repeats", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "5 runs agree" in shown
    assert {line.split()[-1] for line in shown.splitlines() if line.startswith("  ") and "%" in line} == {"agrees"}


def test_the_operator_that_differs_from_run_to_run_is_blamed_alone_with_a_status_of_its_own(tmp_path, capsys):
    runs = written(tmp_path, [1.0, 1.3, 0.8, 1.15, 0.9])
    assert cli.main(["compare", "--repeats", *runs]) == 3
    lines = capsys.readouterr().out.splitlines()
    decode = lines[next(at for at, line in enumerate(lines) if line.startswith("decode")) :]
    assert "all_reduce differs from run to run" in decode[0]
    assert decode[3].split()[0] == "all_reduce"
    assert decode[3].split()[-1] == "differs"
    assert decode[4].split()[-1] == "agrees"


def test_json_says_the_same(tmp_path, capsys):
    runs = written(tmp_path, [1.0, 1.3, 0.8])
    assert cli.main(["compare", "--repeats", *runs, "--json"]) == 3
    said = json.loads(capsys.readouterr().out)
    (decode,) = (kind for kind in said["kinds"] if kind["phase"] == "decode")
    assert (decode["blame"], decode["trusted"]) == (["all_reduce"], False)
    assert decode["operators"]["ffn"]["differs"] is False


def test_what_is_wrong_with_a_recording_is_said_beside_it(tmp_path, capsys):
    for number in range(3):
        path = simulated.write(tmp_path / str(number), number, steps=60, ranks=2)
    (path / "rank-0.records").unlink()
    cli.main(["compare", "--repeats", str(tmp_path)])
    assert "note: " in capsys.readouterr().out
    cli.main(["compare", "--repeats", str(tmp_path), "--json"])
    (note,) = json.loads(capsys.readouterr().out)["notes"]
    assert "rank 0 has no steps" in note


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_are_one_sentence(tmp_path, capsys, count):
    runs = written(tmp_path, [1.0] * count)
    assert cli.main(["compare", "--repeats", *runs]) == 1
    said = capsys.readouterr().err
    assert f"needs at least 3 recordings of the same load, but got {count}" in said
    assert len(said.splitlines()) == 1


def test_hardly_any_sampled_step_is_told_as_such(tmp_path, capsys):
    runs = [str(simulated.write(tmp_path / str(number), number, steps=20, every=10**6)) for number in range(3)]
    assert cli.main(["compare", "--repeats", *runs]) == 1  # only the first step of each is sampled
    said = capsys.readouterr().err
    assert "too few sampled steps" in said
    assert len(said.splitlines()) == 1


def test_recordings_of_different_models_are_no_repeats(tmp_path, capsys):
    runs = written(tmp_path, [1.0, 1.0])
    assert cli.main(["compare", "--repeats", *runs, "h200-llama-7b-tp1"]) == 1
    assert "are no repeats of one run, their" in capsys.readouterr().err


def test_a_recording_that_is_given_twice_is_refused(tmp_path, capsys):
    runs = written(tmp_path, [1.0, 1.0])
    assert cli.main(["compare", "--repeats", *runs, runs[0]]) == 1
    assert "is given twice" in capsys.readouterr().err
