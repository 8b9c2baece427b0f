"""From made-up rows of links.py and scaling.py to what is claimed, and from the records of made-up ranks to such rows."""

import dataclasses
import json
import shutil
import types

import hours
import links
import numpy as np
import pytest
import records
import scaling
import variants
from rank import AHEAD, DECODES, EAGER, GRAPH, NOBODY, PREFILL, SEEN

from lightllm_otel.records import layout
from lightllm_otel.records.vocabulary import Implementation, Mode, Operator, Phase

TOPOLOGY = {
    "kind": "topology", "link": "nvlink4x18", "link_kind": "nvlink", "path": "SYS", "gpu": "NVIDIA H100 80GB HBM3",
    "nvlink": ["4x18"], "pcie": ["5x16"], "nvlink_bytes_per_second": 900e9, "pcie_bytes_per_second": 126e9,
    "matrix": [], "transports": ["P2P/CUMEM"],
}  # fmt: skip


def shares(number, mode, transfer_us, others_us, how="nccl", payload=1 << 19, calls=64):
    """Rows of one share pass: all_reduce takes its transfer in every call, and the rest is ffn."""
    step = calls * transfer_us + others_us
    percent = 100 * calls * transfer_us / step
    yield {"kind": "moved", "pass": number, "mode": mode, "steps": 4, "context": 1028, "matched": 4, "calls": 4 * calls,
           "transfer_us": transfer_us, "wait_us": [1.0, 0.0], "calls_of_a_step": calls, "payload_bytes": payload,
           "implementation": [how], "bus_bytes_per_second": round(payload / transfer_us * 1e6), "step_us": step}  # fmt: skip
    for operator, part in (("ffn", 100 - percent), ("all_reduce", percent)):
        yield {
            "kind": "share",
            "pass": number,
            "mode": mode,
            "operator": operator,
            "steps": 3,
            "percent": part,
            "mean_us": 1.0,
        }


def build(prefill_us=1000.0, decode_us=20.0, how="nccl"):
    """Rows of a variant."""
    return [
        dict(TOPOLOGY), *shares(1, PREFILL, prefill_us, 4e5, payload=1 << 29), *shares(4, GRAPH, decode_us, 6e3, how),
        {"kind": "slow", "mode": GRAPH, "slow": 1, "delay_ms": 0.02, "steps": 24, "matched": 24, "calls": 10,
         "told": 10, "sure": 8, "named_calls": 9, "named_steps": 18, "transfer_us": decode_us, "wait_us": [20.0, 0.0]},
        *({"kind": "plain", "mode": GRAPH, "steps": 24, "transfer_us": decode_us} for _ in range(2)),
        {"kind": "tokens", "rank": 0, "setting": "default", "tokens_compared": 4096, "identical": True},
        *({"kind": "cell", "rank": 0, "case": case, "pairs": 14, **dict.fromkeys(("on_us", "on_kept_us"), on),
           **dict.fromkeys(("off_us", "off_kept_us"), 9900.0)}
          for case, on in (("graph_default", 9900.0), ("graph_every_step", 10000.0)) for _ in range(2)),
        {"kind": "case", "case": "graph_default", "sampled_percent": 1.5},
    ]  # fmt: skip


def rows(**builds):
    return [{"variant": name, "tp": 2, "one_gpu": False, **row} for name, own in builds.items() for row in own]


BOTH = {"nccl_nvlink": build(), "nccl_pcie": build(prefill_us=9000.0, decode_us=60.0)}


def test_nvlink_over_pcie_is_a_ratio_of_transfers_beside_theorys():
    found = links.summarise(rows(**BOTH))
    assert found["speedup"]["prefill"]["measured"] == 9.0
    assert found["speedup"]["decode"]["measured"] == 3.0
    # A large payload gains what the links differ by, a small one less.
    assert found["speedup"]["prefill"]["theory_of_bandwidth_alone"] == pytest.approx(7.143, abs=1e-3)
    assert found["speedup"]["prefill"]["theory"] == pytest.approx(7.1, abs=0.1)
    assert 1 < found["speedup"]["decode"]["theory"] < 3
    nvlink = found["variants"]["nccl_nvlink"]
    assert nvlink["prefill"]["bus_bytes_per_second"] == round((1 << 29) / 1e-3)
    assert nvlink["straggler_named_percent_by_delay"] == {GRAPH: {"20": 75.0}}
    assert nvlink["wait_us_by_delay"] == {GRAPH: {"20": [20.0, 20.0]}}
    assert (found["tokens_identical"], found["problems"]) == (True, [])
    assert found["slow_rank"] == {GRAPH: {"straggler_named_percent": 75.0, "transfer_shift_percent": 0.0}}


def test_later_passes_replace_those_of_their_variant_and_nothing_else():
    later = rows(
        nccl_nvlink=[{"kind": "slow", "mode": GRAPH, "slow": 0, "delay_ms": 0.2, "steps": 24, "named_steps": 24}]
    )
    measured = {"date": "2026-11-26", "commit": "abc"}
    found = links.with_passes(rows(**BOTH), {**measured, "rows": later})
    assert [row for row in found if row["variant"] == "nccl_nvlink" and row["kind"] in ("slow", "plain")] == [
        {**later[0], **measured}
    ]
    kept = [row for row in rows(**BOTH) if row["variant"] == "nccl_pcie" or row["kind"] not in ("slow", "plain")]
    assert found[:-1] == kept
    other_mode = [{**row, "mode": EAGER} for row in later]
    assert links.with_passes(rows(**BOTH), {**measured, "rows": other_mode})[:-1] == rows(**BOTH)


def test_later_shares_replace_those_of_their_variant_and_nothing_else():
    later = rows(nccl_nvlink=[row for row in build(decode_us=21.0) if row["kind"] in ("moved", "share")])
    measured = {"date": "2026-11-26", "commit": "abc"}
    found = links.with_passes(rows(**BOTH), {**measured, "rows": [*later, *rows(nccl_pcie=[])]}, links.SHARES)
    before, after = links.summarise(rows(**BOTH)), links.summarise(found)
    assert after["variants"]["nccl_nvlink"]["decode"]["transfer_us"] == 21.0
    assert after["variants"]["nccl_pcie"] == before["variants"]["nccl_pcie"]
    assert after["slow_rank"] == before["slow_rank"]
    assert {row["commit"] for row in found if row["variant"] == "nccl_nvlink" and row["kind"] == "moved"} == {"abc"}


def test_pairs_of_another_run_count_beside_those_of_this_one():
    other = [row for row in build() if row["kind"] in ("cell", "case")]
    dearer = [{**row, "on_us": 10100.0, "on_kept_us": 10100.0} if row.get("case") == "graph_every_step" and "pairs" in row
              else row for row in other]  # fmt: skip
    measured = {"date": "2026-11-26", "commit": "abc"}
    found = links.with_pairs(rows(nccl_nvlink=build()), {**measured, "rows": rows(nccl_nvlink=dearer, custom=other)})
    assert {row["variant"] for row in found} == {"nccl_nvlink"}, "of a variant that is not measured nothing is told"
    cost = links.summarise(found)["variants"]["nccl_nvlink"]["overhead"]["every_step"]
    assert (cost["added_us"], cost["pairs"]) == (150.0, 56)
    assert {row["commit"] for row in found if "commit" in row} == {"abc"}


def test_launched_ahead_is_not_what_it_says_where_a_gpu_waited_for_its_host():
    ahead = {"kind": "plain", "mode": AHEAD, "calls": 64, "sure": 64, "told": 63, "transfer_us": 10.0, "steps": 1}
    assert links.summarise(rows(nccl_pcie=[ahead]))["problems"] == [
        "nccl_pcie: plain in mode eager_ahead, but in 1 calls the GPU waited for its host"
    ]
    assert links.summarise(rows(nccl_pcie=[{**ahead, "told": 64}]))["problems"] == []


def test_how_many_calls_say_who_was_last_is_told():
    slow = links.summarise(rows(nccl_nvlink=build()))["variants"]["nccl_nvlink"]["slow_rank"]
    assert slow[GRAPH]["sure_percent"] == 80.0


def test_how_often_cupti_saw_the_named_rank_come_last_is_told_of_the_worst_pass():
    own = [{"kind": kind, "mode": SEEN, "slow": slow, "delay_ms": 0.02 * (slow + 1), "steps": 24, "matched": 24, "calls": 96,
            "told": 96, "sure": 90, "named_calls": 40, "named_steps": 12, "transfer_us": 10.0, "wait_us": [20.0, 0.0],
            "right_steps": right, "right_calls": 80, "judged_calls": 80}
           for kind, slow, right in (("plain", -1, 24), ("slow", 0, 23), ("slow", 1, 24))]  # fmt: skip
    found = links.summarise(rows(nccl_nvlink=[*build(), *own]))
    seen = found["variants"]["nccl_nvlink"]["slow_rank"][SEEN]
    assert (seen["named_percent"], seen["right_percent"], seen["right_percent_of_steps"]) == (50.0, 95.83, 98.61)
    assert seen["right_percent_of_calls"] == 100.0
    assert found["slow_rank"][SEEN]["right_percent"] == 95.83
    assert "right_percent" not in found["slow_rank"][GRAPH]


def test_the_default_costs_what_the_steps_that_it_samples_cost():
    cost = links.summarise(rows(**BOTH))["variants"]["nccl_nvlink"]["overhead"]
    assert cost["every_step"]["loss_percent"] == 1.0
    assert cost["every_step"]["added_us"] == 100.0
    assert cost["default"]["loss_percent"] == pytest.approx(0.015, abs=1e-3)


def test_custom_that_was_nccl_in_the_records_is_not_available():
    found = links.summarise(rows(custom=build()))["variants"]["custom"]
    assert (found["available"], found["row"]) == (False, "not available")
    assert found["implementation"] == {"prefill": ["nccl"], "decode": ["nccl"]}
    assert links.summarise(rows(custom=build(how="custom")))["variants"]["custom"]["available"]


def test_a_rank_that_did_not_end_is_a_problem():
    made = rows(nccl_pcie=[{"kind": "problem", "problem": "not done after 150 s"}])
    assert links.summarise(made)["problems"] == ["nccl_pcie: not done after 150 s"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool")
def test_a_lost_nvlink_fires_alerts_of_all_reduce_and_of_the_link():
    found = links.summarise(rows(**BOTH))["alerts"]
    fired = {each["alert"] for each in found["fired"]}
    assert {"LightLLMAllReduceSlower", "LightLLMDecodeSlow"} <= fired
    assert found["fired_before_the_change"] == []
    # What does not change fires nothing.
    same = links.summarise(rows(nccl_nvlink=build(), nccl_pcie=build()))["alerts"]
    assert (same["fired"], same["fired_before_the_change"]) == ([], [])


def test_an_hour_of_each_at_their_own_rates():
    before, after = (hours.Rates.of(BOTH[name]) for name in ("nccl_nvlink", "nccl_pcie"))
    made = hours.series(before, after, 900e9)
    each = 'lightllm_gpu_operator_{}_seconds_total{{operator="all_reduce",phase="decode"}}'
    measured, expected = (np.diff(made.columns[each.format(name)]) for name in ("compared", "expected"))
    assert measured[0] == pytest.approx(expected[0])
    assert measured[-1] / expected[-1] == pytest.approx(3.0)
    assert expected[-1] < expected[0], "fewer steps in an hour"


def left(folder, passes, cells):
    for number, own in enumerate(cells):
        np.save(folder / f"rank-{number}.npy", records.cells(*own))
        content = {"passes": passes, "own": [], "facts": {**records.FACTS, "tp": 2}, "overwrites": 0, "dropped": [0] * 8,
                   "errors": [0] * 8, "clock_quantum": 32e-9, "boundary_cost": 1e-6, "stamp_quantum": 32e-9,
                   "stamp_cost": 1e-6}  # fmt: skip
        (folder / f"rank-{number}.json").write_text(json.dumps(content))
        (folder / f"more-{number}.json").write_text(
            json.dumps([{"kind": "tokens", "identical": True}, {"kind": "cell"}])
        )
    (folder / "rank-0.log").write_text("x NCCL INFO Channel 00/0 : 0[0] -> 1[1] via SHM/direct/direct\n")


def test_rows_of_what_ranks_left_say_what_moved_and_by_whom(tmp_path):
    seconds, payload = 2.0**-7, 1 << 20
    cells = [
        [records.with_collectives(number, records.collectives(np.full((3, 2), seconds), payload, Implementation.CUSTOM),
                                  Phase.DECODE, Mode.GRAPH) for number in range(4)]
        for _ in range(2)
    ]  # fmt: skip
    share = {
        "kind": "share",
        "mode": GRAPH,
        "steps": 4,
        "slow": NOBODY,
        "delay_ms": 0.0,
        "first": 0,
        "last": 3,
        "context": 9,
    }
    left(tmp_path, [share], cells)
    found = variants.left_rows(tmp_path, 2)
    moved = next(row for row in found if row["kind"] == "moved")
    assert (moved["implementation"], moved["payload_bytes"], moved["calls_of_a_step"]) == (["custom"], payload, 6)
    assert moved["transfer_us"] == 7812.5
    assert moved["bus_bytes_per_second"] == round(payload / seconds)
    assert moved["step_us"] == 6 * 7812.5
    assert next(row for row in found if row["kind"] == "topology")["transports"] == ["SHM/direct/direct"]
    assert [(row["kind"], row["rank"]) for row in found if "rank" in row] == [("tokens", 0), ("cell", 0), ("tokens", 1)]
    assert next(row for row in found if row["kind"] == "share")["operator"] == Operator.ALL_REDUCE.value


def test_all_modes_begin_at_the_same_context():
    made = variants.passes(links.FULL, 2, graphs=True)
    at = {mode: next(number for number, each in enumerate(made) if (each.kind, each.mode) == ("plain", mode))
          for mode in DECODES if mode != SEEN}  # fmt: skip
    assert all((made[first - 2].mode, made[first - 1].kind) == (PREFILL, "warm") for first in at.values())
    assert [each.delay_ms for each in made if each.kind == "slow"] == [0.02, 0.05, 0.2] * 6


def test_cupti_watches_in_a_build_of_its_own():
    assert SEEN not in {each.mode for each in variants.passes(links.FULL, 2, graphs=True)}
    alone = variants.passes(dataclasses.replace(links.FULL, only=(SEEN,)), 2, graphs=True)
    assert {each.mode for each in alone} == {PREFILL, SEEN}


def test_passes_of_some_modes_are_those_with_a_slow_rank_and_nothing_else():
    made = variants.passes(dataclasses.replace(links.FULL, only=(EAGER,)), 2, graphs=True)
    assert {each.kind for each in made} == {"warm", "plain", "slow"}
    assert {each.mode for each in made} == {PREFILL, EAGER}


def test_scaling_repeats_shares_and_slows_nobody():
    kinds = [each.kind for each in variants.passes(scaling.FULL, 4, graphs=True)]
    assert kinds.count("share") == 10
    assert not {"slow", "plain"} & set(kinds)


def test_scaling_is_a_speedup_for_each_operator_and_what_repeats_differ_by():
    def group(tp, transfers, others):
        own = [{**TOPOLOGY, "layers": 80}]
        for number, transfer in enumerate(transfers):
            own += shares(number, GRAPH, transfer, others, calls=160)
        return [{"tp": tp, **row} for row in own]

    found = scaling.summarise(group(4, [20.0, 22.0, 21.0], 2e4) + group(8, [21.0] * 3, 1e4))
    ratios = found["speedup"]["tp4 to tp8"]["decode"]
    assert ratios["ffn"]["measured"] == 2.0
    assert ratios["ffn"]["theory"] == pytest.approx(2.0, abs=0.05)
    assert ratios["all_reduce"]["measured"] == 1.0
    assert ratios["all_reduce"]["theory"] < 1
    stable = found["groups"]["tp4"]["stability"]["decode"]
    assert stable["transfer of a call"]["range_percent"] == pytest.approx(9.524, abs=1e-3)
    assert stable["ffn"]["deviation_percent"] == pytest.approx(0.0, abs=1e-6)
    assert found["layers"] == [80]


def test_one_rank_alone_has_a_theory_too_though_it_moves_nothing():
    alone = [{**TOPOLOGY, "link": "none", "link_kind": "none", "layers": 24}]
    for row in shares(1, GRAPH, 1.0, 2e4, calls=0):
        moved_nothing = {"transfer_us": None, "wait_us": [], "payload_bytes": None, "bus_bytes_per_second": None}
        alone.append({**row, **(moved_nothing if row["kind"] == "moved" else {})})
    pair = [{**TOPOLOGY, "layers": 24}, *shares(1, GRAPH, 20.0, 1e4, calls=48)]
    found = scaling.summarise([{"tp": tp, **row} for tp, own in ((1, alone), (2, pair)) for row in own])
    ratios = found["speedup"]["tp1 to tp2"]["decode"]
    assert ratios["ffn"]["measured"] == 2.0
    assert ratios["ffn"]["theory"] == pytest.approx(2.0, abs=0.05)
    assert 1 < ratios["step"]["theory"] < 2
    assert "decode" not in found["groups"]["tp1"], "one rank moves nothing"


def test_a_plugin_that_was_there_already_says_what_it_knows():
    header = np.zeros(1, layout.HEADER)
    header["steps"] = 7
    graphs = types.SimpleNamespace(facts=lambda: {"state": "armed"})
    session = types.SimpleNamespace(_prepared=(None, types.SimpleNamespace(header=header)), instrumented_graphs=graphs)
    facts = variants.Attached(types.SimpleNamespace(session=lambda: session)).facts()
    assert (facts["steps"], facts["twins"]) == (7, {"state": "armed"})


def test_the_last_file_with_a_variant_counts_for_it():
    older, newer = {"date": "2026-11-25", "commit": "abc"}, {"date": "2026-11-26", "commit": "def"}
    first = {**older, "rows": rows(**BOTH)}
    second = {**newer, "rows": rows(nccl_pcie=[{"kind": "problem", "problem": "none"}])}
    found = links.together([first, second], [])
    assert [row for row in found if row["variant"] == "nccl_pcie"] == [{**newer, **row} for row in second["rows"]]
    assert [row for row in found if row["variant"] == "nccl_nvlink"] == [
        {**older, **row} for row in rows(nccl_nvlink=build())
    ]
    assert links.together([{**newer, "rows": found}], []) == found, "rows keep where they were measured"
    assert links.together([first], ["nccl_nvlink", "nccl_pcie"]) == []
