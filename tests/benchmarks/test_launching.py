"""What bounds decode: the summary from the rows alone, and which starts there are."""

import launching


def row(part, phase="decode", **fields):
    return {"kind": "phase", "part": part, "phase": phase, "step_ms": 8.0, "mbu_percent": 5.0, "mfu_percent": 1.0,
            "mode": "graph",
            "shares": {"attention": {"percent": 25.0}}, "hidden": 1024, "input_len": 1024, "blocking": False,
            **fields}  # fmt: skip


def test_each_hidden_size_has_both_ways_of_launching_and_prefill_is_another_matter():
    rows = [row("hidden"), row("hidden", blocking=True, step_ms=12.0), row("hidden", "prefill", step_ms=99.0)]
    found = launching.summarise(rows)["hidden"]
    assert {way: each["step_ms"] for way, each in found["1024"].items()} == {"as it is": 8.0, "blocking": 12.0}


def test_attention_of_a_step_is_its_share_of_it():
    found = launching.summarise([row("lengths", input_len=4096)])["lengths"]
    assert found == {"4096": {"step_ms": 8.0, "attention_ms": 2.0, "attention_percent": 25.0}}


def test_a_start_that_failed_is_a_problem_of_the_result():
    assert launching.summarise([{"kind": "problem", "problem": "hidden: not done"}])["problems"] == ["hidden: not done"]


def test_launches_block_in_half_of_the_starts_of_each_hidden_size():
    hidden = [case for case in launching.cases(cpu=False) if case.part == "hidden"]
    assert [case.blocking for case in hidden] == [False, True] * 4
    assert {case.version for case in hidden} == {"old"}, "what the original used"


def test_earlier_rows_of_the_other_part_are_kept():
    measured = {"date": "2026-11-26", "commit": "abc"}
    earlier = [{**measured, "rows": [{"merged": {}}, {"part": "hidden"}, {"part": "lengths"}]}]
    assert launching.together(earlier, ["lengths"]) == [{**measured, "part": "hidden"}]


def test_lengths_are_those_of_graphs_where_there_are_any():
    rows = [row("lengths", step_ms=4.0), row("lengths", step_ms=9.0, mode="eager")]
    assert launching.summarise(rows)["lengths"]["1024"]["step_ms"] == 4.0
