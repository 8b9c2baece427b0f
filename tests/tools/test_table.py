"""Tests of text tables and the commands that print them: columns never touch, and numbers are right-aligned."""

import itertools
import json
import math
import re

import pytest
import simulated

from lightllm_otel.contracts.table import FIELDS, HOOKS
from lightllm_otel.records.vocabulary import Operator
from lightllm_otel.tools import calibrate, cli, compare, doctor, kernel_capture, operator_table
from lightllm_otel.tools.analysis.compare import OperatorChange as Change
from lightllm_otel.tools.analysis.kernels import Kernel
from lightllm_otel.tools.finding import NOTE, WRONG, Finding
from lightllm_otel.tools.table import table, width

LONG = max((operator.value for operator in Operator), key=len)


class TestATable:
    def test_has_names_to_the_left_and_numbers_to_the_right(self):
        assert table([["", "step"], ["ffn", "1.5"], ["lm_head", "12.25"]], "<>") == [
            "          step",
            "ffn        1.5",
            "lm_head  12.25",
        ]

    def test_is_as_wide_as_asked_and_wider_where_a_cell_needs_it(self):
        assert table([["a", "1", "x"], ["b", "2", "y"]], "<>>", (3, 4, 1)) == ["a       1  x", "b       2  y"]
        assert table([["operator", "123456", "x"], ["b", "2", "y"]], "<>>", (3, 4, 1)) == [
            "operator  123456  x",
            "b              2  y",
        ]

    def test_counts_a_chinese_character_as_two_columns_and_a_mark_as_none(self):
        assert [width(text) for text in ("abc", "模型", "ｆ", "µs · ×", "e\u0301", "")] == [3, 4, 2, 6, 1, 0]
        rows = table([["模型", "1"], ["llama", "23"]], "<>")
        assert rows == ["模型    1", "llama  23"]
        assert len({width(row) for row in rows}) == 1

    def test_lets_the_last_cell_of_a_row_be_of_any_length(self):
        rows = table([["ok", "hook", "fine"], ["", "a sentence that is longer than its column"]], "<<<")
        assert rows == ["ok  hook  fine", "    a sentence that is longer than its column"]

    def test_may_have_short_rows_and_none_at_all(self):
        assert table([], "<>") == []
        assert table([["one step", "3"], ["x", "14", "memory"]], "<><") == ["one step   3", "x         14  memory"]


def cells(line):
    return re.split(r"\s{2,}", line.strip())


def test_contracts_keep_long_places_apart_from_versions(capsys):
    assert cli.main(["doctor", "--contracts"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(HOOKS) + len(FIELDS)
    assert {len(cells(line)) for line in lines} == {3}


def test_doctor_keeps_the_long_name_of_a_rank_apart_from_what_it_says():
    found = [Finding(WRONG, "127.0.0.1-28765-dp0 rank 0", "is wrong", "mend it"), Finding(NOTE, "hook", "is there")]
    first, remedy, second = doctor.lines(found)
    assert cells(first) == ["wrong", "127.0.0.1-28765-dp0 rank 0", "is wrong"]
    assert first.index("is wrong") == remedy.index("→") == second.index("is there")


def test_compare_keeps_the_longest_operator_apart_from_its_phase():
    row = Change("prefill", "eager", LONG, 1.0, 1.0, None, None, None, None, 1.0)
    heads, line = compare._table([row])
    assert cells(line)[:2] == [LONG, "prefill · eager"]
    assert heads.index("verdict") == line.index(row.verdict)


def test_top_keeps_large_numbers_apart():
    rows = {("decode", "graph"): {LONG: operator_table.OperatorCalls(123456789.0, 1e9, {math.inf: 123456789.0})}}
    heads, line, _ = operator_table.render(rows).split("\n")
    assert len(cells(heads)) == len(cells(line)) == 6
    assert len(heads) == len(line)


def test_kernels_stand_in_columns_below_their_operators(tmp_path):
    made = [Kernel(operator="ffn", name=name, calls=calls, seconds=seconds)
            for name, calls, seconds in (("gemm", 12345678901, 4e4), ("silu", 2, 1e-3))]  # fmt: skip
    head, one, two, *_ = kernel_capture.render(made, tmp_path).split("\n")
    assert cells(head)[0] == "ffn"
    assert cells(one)[-1] == "gemm"
    assert one.index("gemm") == two.index("silu")


def test_calibrate_keeps_its_matrix_in_columns_with_many_gpus():
    ranks = range(12)
    pairs = [
        {"ranks": [a, b], "bytes_per_second": 4e11, "latency_seconds": 2e-6} for a in ranks for b in ranks if a < b
    ]
    lines = calibrate._matrix({"ranks": 12, "pairs": pairs})
    assert len({len(line) for line in lines}) == 1
    assert cells(lines[-1])[:2] == ["GPU 11", "2 µs"]


def tables(text, mark):
    """Return the tables in the output of a command. A table begins at a line with ``mark``."""
    lines = text.splitlines()
    for at in (at for at, line in enumerate(lines) if mark in line):
        yield lines[at], list(itertools.takewhile(lambda line: line[:2] in ("  ", "→ "), lines[at + 1 :]))


@pytest.mark.parametrize(
    ("words", "mark", "unnamed"),
    [
        (["report", "h200-llama-7b-tp1", "--model", "llama2-7b"], "of peak", 1),
        (["theory", "--model", "deepseek-v3", "--gpu", "H200", "--tp", "8"], "TFLOP  ", 0),
        (["plan", "--model", "llama2-7b", "--machine", "H200:1:4", "--machine", "A100-SXM-80GB:2:2"], "cost per", 1),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_rows_have_as_many_cells_as_their_heading(words, mark, unnamed, capsys):
    assert cli.main(words) in (0, 4)
    found = list(tables(capsys.readouterr().out, mark))
    assert found
    for heading, below in found:
        rows = [row for row in below if "one step" not in row]
        assert len(rows) >= 4
        assert {len(cells(row)) for row in rows} == {len(cells(heading)) + unnamed}


def test_repeats_stand_in_columns(tmp_path, capsys):
    run = simulated.write(tmp_path / "a", 1, repeats=3, steps=100)
    assert cli.main(["compare", "--repeats", str(run)]) in (0, 3)
    (_, rows) = max(tables(capsys.readouterr().out, "between runs"), key=lambda found: len(found[1]))
    assert rows
    assert {len(cells(row)) for row in rows} == {5}


def test_json_of_findings_is_as_it_was(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("LIGHTLLM_OTEL_DIR", str(tmp_path))
    cli.main(["doctor", "--json"])
    assert {"state", "about", "what", "remedy"} <= json.loads(capsys.readouterr().out)[0].keys()
