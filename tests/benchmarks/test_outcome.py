"""The outer form of a result: where its rows come from stays known however often files are put together."""

import json

import outcome


def part(commit, *rows):
    return {
        "date": "2026-11-25",
        "commit": commit,
        "command": f"python {commit}",
        "gpu": {},
        "software": {},
        "rows": rows,
    }


def test_a_file_put_together_from_merged_ones_still_says_where_each_row_was_measured(tmp_path):
    first = outcome.write("overhead", {}, [{"part": "a"}], tmp_path / "1", [part("one", {"part": "a"})])
    again = json.loads(first.read_text())
    second = json.loads(
        outcome.write("overhead", {}, again["rows"], tmp_path / "2", [again, part("one"), part("two")]).read_text()
    )
    commits = [row["merged"]["commit"] for row in second["rows"] if "merged" in row]
    assert commits == ["one", again["commit"], "two"]
    assert [row for row in second["rows"] if "merged" not in row] == [{"part": "a"}]


def test_what_was_measured_earlier_keeps_the_last_files_date_and_commit(tmp_path):
    merged = [part("one"), {**part("two"), "date": "2026-11-26"}]
    written = json.loads(outcome.write("overhead", {}, [], tmp_path, merged, measured=False).read_text())
    assert (written["commit"], written["date"]) == ("two", "2026-11-26")
