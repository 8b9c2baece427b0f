"""From simulated runs to what is claimed: equal ones, a slowed operator, a benchmark's report, and the calibration."""

import json

import analysis
import analysis_claims
import equal_repeats
import pytest
import run_rows
import simulated

from lightllm_otel.records.vocabulary import Mode, Operator, Phase
from lightllm_otel.tools.analysis import baseline
from lightllm_otel.tools.analysis.compare import compare
from lightllm_otel.tools.analysis.runs import load

REPEATS = 10


def recorded(folder, seed, repeats, **options):
    return simulated.write(folder, seed=seed, repeats=repeats, steps=24, **options)


@pytest.fixture
def equal(tmp_path):
    return recorded(tmp_path / "plain", 1, REPEATS)


def of_part(part, *rows):
    return [{"part": part, **row} for row in rows]


def of_decode(rows):
    (row,) = (row for row in rows if row.get("phase") == "decode")
    return row


def test_equal_repeats_differ_no_more_often_than_stated(equal):
    row = equal_repeats.splits_row(baseline.side(load(equal)), 5, splits=60)
    assert (row["splits"], row["half"]) == (60, 5)
    summary = analysis_claims.summarise(of_part("same", row))
    assert summary["aa_significant_percent"] <= summary["aa_stated_error_percent"] == 5.0
    assert summary["aa_verdict_percent"] <= summary["aa_significant_percent"]


def test_a_slowed_operator_is_found_and_estimated(equal, tmp_path):
    slow = recorded(tmp_path / "10", 2, 5, slower={Operator.FFN: 1.1})
    mean = equal_repeats.ffn_means(load(equal))[Phase.DECODE]
    assert mean == pytest.approx(80e-6, rel=0.02)
    injected = {"kind": "injected", "percent": 10, "phase": "decode", "ffn_us": 80.0, "asked_us": 8.0, "spun_us": 8.08}
    comparison = compare(baseline.side(load(equal)), baseline.side(load(slow)))
    row = of_decode(equal_repeats.slowed_rows(comparison, 10, [injected]))
    assert row["found"]
    assert row["injected_percent"] == 10.1
    assert row["ci95"][0] < 10 < row["ci95"][1]
    assert analysis_claims.summarise(of_part("same", row))["slowed"]["10"]["decode"]["found"]


def test_without_its_own_measurement_the_wanted_delay_counts(equal, tmp_path):
    slow = recorded(tmp_path / "10", 2, 5, slower={Operator.FFN: 1.1})
    injected = {"kind": "injected", "percent": 10, "phase": "decode", "ffn_us": 80.0, "asked_us": 8.0, "spun_us": None}
    comparison = compare(*(baseline.side(load(path)) for path in (equal, slow)))
    row = of_decode(equal_repeats.slowed_rows(comparison, 10, [injected]))
    assert row["injected_percent"] == 10.0


def test_every_block_has_each_slowed_kind_once_and_equal_ones_twice():
    made = equal_repeats.schedule(REPEATS)
    assert made.count(equal_repeats.PLAIN) == REPEATS
    assert [made.count(str(percent)) for percent in equal_repeats.SLOWED] == [5, 5]
    assert made[:4] == made[4:8][::-1]


def test_shares_and_speed_of_a_benchmark_come_from_its_report(tmp_path):
    folder = recorded(tmp_path / "runs", 3, 2)
    repeats = [
        {"output_tokens_per_second": rate, "hook_share": 0.001, "lost_records": 0, "notes": []}
        for rate in (90.0, 110.0)
    ]
    (folder / "bench.json").write_text(json.dumps({"plan": {"batch_size": 20}, "repeats": repeats}))
    rows = of_part("static_new", *run_rows.run_rows(load(folder), "not done"))
    decode = of_decode(rows)
    rows.append({**decode, "part": "static_old", "step_ms": 3 * decode["step_ms"]})
    summary = analysis_claims.summarise(rows)
    shares = summary["shares"]["static_new"]["decode"]
    assert next(iter(shares)) == summary["leads"]["static_new"]["decode"] == "ffn"
    share, low, high = shares["ffn"]
    assert low <= share <= high
    assert summary["output_tokens_per_second"] == {"static_new": 100.0}
    assert summary["decode_old_over_new"] == {"static": 3.0}
    assert summary["problems"] == ["static_new: not done"]


def test_of_two_modes_the_one_with_more_sampled_steps_counts():
    share = {"percent": 50.0, "ci95": [49.0, 51.0]}
    row = {"kind": "phase", "phase": "decode", "steps": 9, "step_ms": 1.0, "mfu_percent": None, "mbu_percent": None}
    rows = of_part(
        "tp2",
        {**row, "mode": Mode.EAGER.value, "sampled": 1, "shares": {"ffn": share}},
        {**row, "mode": Mode.GRAPH.value, "sampled": 8, "shares": {"all_reduce": share}},
    )
    assert analysis_claims.shares(rows) == {"tp2": {"decode": {"all_reduce": [50.0, 49.0, 51.0]}}}


def test_the_machine_is_set_against_its_data_sheet():
    found = {"name": "NVIDIA H200 (measured)", "flops": 700e12, "memory_bytes_per_second": 4.0e12}
    row = analysis.machine_row(found)
    assert row["sheet"].startswith("H200")
    assert 60 < row["flops_of_sheet_percent"] < 80
    assert 80 < row["memory_bytes_per_second_of_sheet_percent"] < 90
    assert analysis.machine_row({**found, "name": "CPU (measured)"})["flops_of_sheet_percent"] is None


def test_the_speed_is_the_median_of_the_commands(tmp_path):
    rows = of_part("speed", *analysis.speed(tmp_path, steps=20, rounds=1))
    summary = analysis_claims.summarise(rows)
    assert summary["seconds_report_1m"] > 0
    assert summary["seconds_compare_1m"] > 0
    assert {row["command"] for row in rows} == {"report", "compare"}


def test_of_merged_files_the_last_counts_for_a_part():
    first, second = (
        {"rows": [{"merged": {}}, *({"part": part, "kind": "took", "seconds": at} for part in parts)]}
        for at, parts in enumerate((("same", "speed", "tp2"), ("speed",)))
    )
    kept = {row["part"]: row["seconds"] for row in analysis.together([first, second], ("tp2",))}
    assert kept == {"same": 0, "speed": 1}
