"""The tables of the documents take each figure from the newest LightLLM that has it, and say which that was."""

import copy
import json

import decode_step
import pytest
import results
import served_tables
import short_tables
from results import CHINESE, ENGLISH, RESULTS

MAIN, V110 = "main@87881ae7c", "v1.1.0@0f5d0ccf9"
SETTING = {
    "throughput_loss_percent": 0.07, "throughput_loss_percent_ci95": [-0.01, 0.15], "itl_p99_increase_percent": -0.04,
    "off_us": 9000.4, "added_us": 6.4, "host_added_us": 11.25, "host_added_us_ci95": [9.0, 13.5],
}  # fmt: skip
CASE = {
    "median_error_us": 0.21, "max_share_error_points": 0.33, "median_error_us_without_cupti": 0.41,
    "max_share_error_points_without_cupti": 0.53,
    "closure_percent_without_cupti": 99.51, "distortion_percent": 0.9,
}  # fmt: skip


def load(name):
    """A result as it was before any server of 2026 was measured."""
    found = json.loads((RESULTS / f"{name}.json").read_text())
    found["rows"] = [row for row in found["rows"] if row.get("part") != "served"]
    return found


def with_hosts(hosts):
    """Today's files with what served.py would add, in the form of its summaries and rows."""
    overhead, accuracy = load("overhead"), load("accuracy")
    overhead["summary"]["hosts"], accuracy["summary"]["hosts"] = {}, {}
    for number, host in enumerate(hosts, 1):
        about = {"part": "served", "host": host, "kind": "about", "gpu": {"count": 1, "name": "NVIDIA H200"}}
        settings = {name: copy.deepcopy(SETTING) for name in ("default", "every_step")}
        overhead["summary"]["hosts"][host] = {
            "llama-7b": {**settings, "start": {}, "incomplete": []},
            "qwen3-8b": settings,
        }
        overhead["rows"].append(about)
        for shape, batch in (("llama-7b", 20), ("qwen3-8b", 20)):
            row = {"part": "served", "host": host, "kind": "case", "case": "default", "shape": shape, "batch": batch}
            overhead["rows"] += [row, {**row, "case": "every_step"}]
        accuracy["summary"]["hosts"][host] = {
            **CASE, "step_closure_percent": 99.42, "by_case": {"llama-7b, batch 1": CASE, "llama-7b, batch 20": CASE},
        }  # fmt: skip
        step = {"ffn": 3000.0 + number, "attention": 2000.0, "other": 40.0, "gap": 100.0}
        row = {"part": "served", "host": host, "shape": "llama-7b", "batch": 20, "mode": "decode graph"}
        accuracy["rows"] += [about, {**row, "operator": "ffn"}, {**row, "problem": "", "step_by_operator_us": step}]
    return {"overhead": overhead, "accuracy": accuracy}


@pytest.fixture
def measured_on(monkeypatch):
    def replace(*hosts):
        files = with_hosts(hosts)
        for module in (short_tables, served_tables):
            monkeypatch.setattr(module, "result", lambda name: files.get(name) or results.result(name))
        return files

    return replace


def rows(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_without_newer_figures_those_of_july_2025_are_shown(measured_on):
    measured_on()
    assert {row[2] for row in rows(short_tables.figures(ENGLISH))} == {"July 2025 (fc72ffab)"}
    assert served_tables.served_cost() == served_tables.served_accuracy()
    assert "Not measured yet" in served_tables.served_cost()


@pytest.mark.parametrize(
    ("language", "version", "conditions"),
    [
        (ENGLISH, "main of 2026-08-21", "H200, llama-7b, batch 20"),
        (CHINESE, "2026-08-21 的 main", "H200，llama-7b，batch 20"),
    ],
)
def test_figures_of_main_stand_before_all_others(measured_on, language, version, conditions):
    measured_on(V110, MAIN)
    found = rows(short_tables.figures(language))
    assert found[0][1:] == ["0.07 % (-0.01 … 0.15)", version, conditions]
    assert found[2][1] == "+0.0 %"
    of_main = [row[1] for row in found if row[2] == version]
    assert of_main == ["0.07 % (-0.01 … 0.15)", "0.07 % (-0.01 … 0.15)", "+0.0 %", "0.21 µs", "0.33", "99.42 %"]
    assert len({row[2] for row in found}) == 2, "what main lacks is of July 2025"


def test_a_version_between_is_shown_where_main_was_not_measured(measured_on):
    measured_on(V110)
    assert rows(short_tables.figures(ENGLISH))[0][2] == "v1.1.0"


def test_every_server_has_its_rows(measured_on):
    measured_on(V110, MAIN)
    cost, exact = rows(served_tables.served_cost()), rows(served_tables.served_accuracy())
    assert [row[:2] for row in cost[::2]] == [
        [version, model] for version in ("main of 2026-08-21", "v1.1.0") for model in ("llama-7b, 20", "qwen3-8b, 20")
    ]
    assert cost[0][2:] == [
        "default (1 decode step in 64)", "0.07 % (-0.01 … 0.15)", "+0.0 %", "9000 µs", "+6 µs", "11.25 µs (9.00 … 13.50)",
    ]  # fmt: skip
    assert exact[0] == ["main of 2026-08-21", "llama-7b, 1", "0.21 µs", "0.33", "0.41 µs, 0.53", "99.51 %", "0.90 %"]
    assert len(exact) == 4


def test_the_picture_is_of_main_where_it_was_measured(measured_on):
    files = measured_on(V110, MAIN)
    picture = decode_step.draw(files["accuracy"])
    assert "NVIDIA H200" in picture
    assert "LightLLM: main of 2026-08-21." in picture
    assert decode_step.parts(files["accuracy"])["ffn"] == 3002.0


def test_tokens_that_differ_are_no_table(measured_on):
    files = measured_on()
    row = next(row for row in files["overhead"]["rows"] if row.get("kind") == "tokens" and row["setting"] != "off")
    row["identical"] = False
    with pytest.raises(ValueError, match="tokens differ"):
        short_tables.figures(ENGLISH)


def test_one_row_stands_only_for_features_that_are_alike(monkeypatch):
    hosts = load("hosts")
    monkeypatch.setattr(short_tables, "result", lambda name: hosts)
    features = hosts["summary"]["versions"]["main"]["features"]
    features["idle"] = "lost"
    assert rows(short_tables.versions_short(ENGLISH))[0][-1] == "**no**"
    features["idle"] = "not there"
    with pytest.raises(ValueError, match="differ in one version"):
        short_tables.versions_short(ENGLISH)
