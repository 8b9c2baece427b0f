"""From seconds of steps to what is claimed: on made-up steps, where the cost is known."""

import itertools
import json

import numpy as np
import overhead_claims
import pairing
import process_memory
import pytest
from pairing import Cell, Sample, Schedule

SCHEDULE = Schedule(positions=128, block=16, passes=20)


def made_up(schedule, loss_percent=0.0, noise=0.01, drift=0.02, seed=1, tail=0.0):
    """Steps of 6 ms that get longer with the context, in passes that drift; with the setting they take longer."""
    random = np.random.default_rng(seed)
    passes = []
    for number in range(schedule.passes):
        base = 6e-3 * (1 + 0.2 * np.arange(schedule.positions) / schedule.positions)
        base = base * (1 + drift * random.standard_normal()) * (1 + noise * random.standard_normal(schedule.positions))
        on = np.array([schedule.is_on(number, at) for at in range(schedule.positions)])
        slower = np.where(random.random(schedule.positions) < tail, 1.3, 1.0)
        passes.append(np.where(on, base * slower / (1 - loss_percent / 100), base))
    return passes


def sample(schedule, passes):
    return Sample.of_rows(pairing.cell_rows("made up", pairing.cells(schedule, passes)))


# Pairs -----------------------------------------------------------------------------------------------------------------


def test_two_passes_after_each_other_complement_each_other_and_passes_go_abba():
    for number in range(0, SCHEDULE.passes, 2):
        for at in range(SCHEDULE.positions):
            assert SCHEDULE.is_on(number, at) is not SCHEDULE.is_on(number + 1, at)
    assert [SCHEDULE.is_on(number, 0) for number in range(8)] == [False, True, True, False] * 2


def test_half_of_every_pass_has_the_setting():
    for number in range(4):
        assert sum(SCHEDULE.is_on(number, at) for at in range(SCHEDULE.positions)) == SCHEDULE.positions // 2


def test_each_pair_is_one_position_with_and_without_the_setting():
    schedule = Schedule(positions=8, block=2, passes=4)
    # A step's "seconds" say which pass, position and setting it was.
    passes = [
        np.array([100 * number + at + (0.5 if schedule.is_on(number, at) else 0) for at in range(8)])
        for number in range(4)
    ]
    found = pairing.cells(schedule, passes)
    assert [(cell.passes, cell.blocks) for cell in found] == list(itertools.product(range(2), range(2)))
    for cell in found:
        assert ((cell.on % 1) == 0.5).all()
        assert ((cell.off % 1) == 0).all()
        assert (np.floor(cell.on) % 100 == cell.off % 100).all()
        assert set(np.floor(cell.on) // 100) == set(cell.off // 100) == {2 * cell.passes, 2 * cell.passes + 1}
        # The first step of each block does not count.
        assert list(cell.off % 100) == [4 * cell.blocks + 1, 4 * cell.blocks + 3]


def test_passes_of_two_processes_are_paired_by_their_number():
    schedule = Schedule(positions=8, block=2, passes=2)
    off = [np.arange(8.0), 10 + np.arange(8.0)]
    found = pairing.whole_passes(schedule, [each + 0.5 for each in off], off)
    assert len(found) == 4
    assert all((cell.on - cell.off == 0.5).all() for cell in found)


@pytest.mark.parametrize("wrong", [{"positions": 24}, {"passes": 3}, {"dropped": 16}])
def test_a_schedule_without_pairs_is_refused(wrong):
    with pytest.raises(ValueError, match="by twos"):
        Schedule(**{"positions": 64, "block": 16, "passes": 2, **wrong})


# Estimates -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_an_injected_loss_is_found_within_its_interval(seed):
    estimate = pairing.throughput_loss(sample(SCHEDULE, made_up(SCHEDULE, loss_percent=2.0, seed=seed)))
    assert estimate.low < 2.0 < estimate.high
    assert estimate.value == pytest.approx(2.0, abs=0.2)
    assert estimate.high - estimate.low < 0.4


def test_no_loss_gives_intervals_around_0_about_as_often_as_they_promise():
    outside = 0
    for seed in range(100):
        estimate = pairing.throughput_loss(sample(SCHEDULE, made_up(SCHEDULE, seed=seed)), seed)
        outside += not estimate.low <= 0 <= estimate.high
    assert outside <= 12  # 5 are promised


def test_what_drifts_between_passes_cancels():
    still = pairing.throughput_loss(sample(SCHEDULE, made_up(SCHEDULE, 1.0, noise=0.001, drift=0.0)))
    drifting = pairing.throughput_loss(sample(SCHEDULE, made_up(SCHEDULE, 1.0, noise=0.001, drift=0.05)))
    assert drifting.value == pytest.approx(still.value, abs=0.1)
    assert drifting.high - drifting.low < 0.1  # of passes that differ by 5 %


def test_steps_that_are_alike_make_the_interval_wider():
    """Noise that whole cells share is not averaged away by the number of steps in them."""
    random = np.random.default_rng(3)
    found = []
    for number in range(100):
        shared = 1 + 0.02 * random.standard_normal()
        found.append(Cell(number, 0, np.full(30, 6e-3 * shared), np.full(30, 6e-3)))
    estimate = pairing.throughput_loss(Sample.of_rows(pairing.cell_rows("alike", found)))
    assert (estimate.high - estimate.low) / 2 == pytest.approx(1.96 * 2 / 100**0.5, rel=0.25)


def test_what_interrupts_a_process_now_and_then_does_not_hide_a_small_loss():
    """3 % of the steps take twice as long, whatever the setting: with all pairs nothing of 0.3 % can be seen."""
    random = np.random.default_rng(5)
    schedule = Schedule(positions=256, block=16, passes=20)
    passes = [
        each * np.where(random.random(schedule.positions) < 0.03, 2.0, 1.0)
        for each in made_up(schedule, 0.3, noise=0.003)
    ]
    rows = pairing.cell_rows("interrupted", pairing.cells(schedule, passes))
    kept, every = (pairing.throughput_loss(Sample.of_rows(rows, kept)) for kept in (True, False))
    assert kept.low < 0.3 < kept.high
    assert kept.high - kept.low < 0.2 < every.high - every.low


def test_leaving_out_the_outermost_pairs_leaves_a_loss_as_it_is():
    for loss in (0.0, 0.5, 3.0):
        estimate = pairing.throughput_loss(sample(SCHEDULE, made_up(SCHEDULE, loss, noise=0.003)))
        assert estimate.value == pytest.approx(loss, abs=0.1)


def test_rare_dearer_steps_that_were_left_out_are_added_at_their_known_cost():
    """Every step costs 0.2 % more, a sampled one 3 % beyond that, and one in 64 is sampled: 0.247 % together."""
    schedule = Schedule(positions=256, block=16, passes=20)

    def with_sampled(share, seed):
        random = np.random.default_rng(seed)
        passes = made_up(schedule, 0.2, noise=0.002, seed=seed)
        for number, each in enumerate(passes):
            on = np.array([schedule.is_on(number, at) for at in range(schedule.positions)])
            each[on & (random.random(schedule.positions) < share)] *= 1.03
        return sample(schedule, passes)

    default, every, never = with_sampled(1 / 64, 1), with_sampled(1.0, 2), with_sampled(0.0, 3)
    assert pairing.throughput_loss(default).value == pytest.approx(0.2, abs=0.02)
    estimate = pairing.with_rare_steps(default, 1 / 64, every, never)
    assert 0.24 < estimate.value < 0.28  # rather too much than too little: a few of them were not left out
    assert estimate.high - estimate.low < 0.15


def test_the_same_seed_draws_the_same():
    rows = sample(SCHEDULE, made_up(SCHEDULE, 1.0))
    assert pairing.throughput_loss(rows, seed=7) == pairing.throughput_loss(rows, seed=7)
    assert pairing.throughput_loss(rows, seed=7).low != pairing.throughput_loss(rows, seed=8).low


def test_what_a_step_takes_longer_and_how_much_more_another_setting_adds():
    one, other = (sample(SCHEDULE, made_up(SCHEDULE, loss)) for loss in (1.0, 3.0))
    off = float(one.means()[1][0])
    assert pairing.added(one).value == pytest.approx(off * (1 / 0.99 - 1), rel=0.15)
    beyond = pairing.added_beyond(other, one)
    assert beyond.low < off * (1 / 0.97 - 1 / 0.99) < beyond.high
    assert pairing.latency_increase(other).value == pytest.approx(100 * (1 / 0.97 - 1), abs=0.2)


def test_a_tail_shows_at_equal_context_and_less_so_over_all_of_a_pass():
    found = pairing.cells(SCHEDULE, made_up(SCHEDULE, tail=0.03, noise=0.002, drift=0.0))
    equal = pairing.tail_increase(found, equal_context=True)
    assert equal.low <= equal.value <= equal.high
    assert equal.value == pytest.approx(30, abs=3)
    assert 0 < pairing.tail_increase(found).value < equal.value
    row = pairing.tail_row("made up", found)
    assert row["pairs"] == SCHEDULE.passes // 2 * 120
    assert row["p99_on_us"] > row["p99_off_us"] > row["p50_off_us"]


def test_one_cell_is_no_reason_to_fail():
    schedule = Schedule(4, 2, 2)
    estimate = pairing.throughput_loss(sample(schedule, made_up(schedule, 1.0, noise=0.0, drift=0.0)))
    assert estimate.low == estimate.value == estimate.high


# The summary -----------------------------------------------------------------------------------------------------------


def case_rows(name, loss):
    found = pairing.cells(SCHEDULE, made_up(SCHEDULE, loss))
    rows = [pairing.tail_row(name, found), *pairing.cell_rows(name, found)]
    return [{"part": "paired", **row} for row in rows]


def ring(tp, **changes):
    instrumented_graphs = {"state": "armed", "sizes": [1, 2], "bytes": 4 << 20, "seconds": 0.5}
    return {"part": "any", "kind": "ring", "tp": tp, "rank": 0, "errors": [0, 0], "twins": instrumented_graphs,
            "dropped": {"overwritten": 0, "control": 9}, **changes}  # fmt: skip


def test_the_summary_of_nothing_claims_nothing():
    summary = overhead_claims.summarise([])
    assert summary["outputs_identical"] is None
    assert summary["tokens_compared"] == 0
    assert summary["hook_ns"] is None
    assert summary["startup"] == {"tp1": {}, "tp2": {}}


def test_the_summary_has_every_case_and_what_a_step_consists_of():
    rows = [*case_rows("graph_steps_only", 0.5), *case_rows("graph_every_step", 2.0), *case_rows("event_pairs", 30.0)]
    summary = overhead_claims.summarise(json.loads(json.dumps(rows)))
    assert summary["event_pairs"]["throughput_loss_percent"] == pytest.approx(30, abs=0.3)
    low, high = summary["graph_every_step"]["throughput_loss_percent_ci95"]
    assert low < 2.0 < high
    assert summary["graph_every_step"]["pairs"] == 1200
    assert "itl_p99_increase_percent" in summary["graph_every_step"]
    off = summary["graph_steps_only"]["off_us"]
    assert summary["fixed_cost_us"] == pytest.approx(off * 0.005, rel=0.3)
    assert summary["marginal_cost_us"] == pytest.approx(off * 0.0154, rel=0.3)
    assert summary["default_from_its_parts_percent"] == pytest.approx(0.52, abs=0.15)


def test_cells_of_several_runs_are_taken_together():
    rows = case_rows("graph_default", 1.0)
    assert overhead_claims.summarise(rows * 2)["graph_default"]["pairs"] == 2400


def tokens(setting, identical, compared=2560):
    return {"part": "paired", "kind": "tokens", "setting": setting, "identical": identical, "tokens_compared": compared}


def test_one_other_token_anywhere_is_told():
    same = [tokens("off", True), tokens("default", True), tokens("every_step", True)]
    summary = overhead_claims.summarise(same)
    assert (summary["outputs_identical"], summary["tokens_compared"]) == (True, 5120)
    assert overhead_claims.summarise([*same, tokens("steps_only", False)])["outputs_identical"] is False
    other = {
        "part": "tp2",
        "kind": "tp2_tokens",
        "server": "instrumented",
        "tokens_compared": 9,
        "same_as_stock": False,
    }
    assert overhead_claims.summarise([*same, other])["outputs_identical"] is False
    itself = overhead_claims.summarise([*same[1:], tokens("off", False)])
    assert (itself["outputs_identical"], itself["stock_identical_to_itself"]) == (True, False)


@pytest.mark.parametrize(
    ("digests", "itself", "alike"), [("aaa", True, True), ("aab", True, False), ("aba", False, False)]
)
def test_tokens_are_compared_with_those_of_a_process_without_the_plugin(digests, itself, alike):
    about = {"part": "any", "shape": "llama-7b", "mode": "graph", "batch": 20}
    stock = [{**about, "kind": "stock_tokens", "digest": each, "tokens_compared": 2560} for each in digests[:2]]
    summary = overhead_claims.summarise([*stock, {**about, **tokens("every_step", True), "digest": digests[2]}])
    assert summary["outputs_identical"] is alike
    assert summary["stock_identical_to_itself"] is itself
    assert summary["tokens_compared_with_stock"] == 2560


def test_rounds_of_two_servers_are_compared_number_by_number():
    rows = []
    for number in range(8):
        slow = 1 + number  # rounds differ by far more than the servers do
        for kind, factor in (("stock", 1.0), ("instrumented", 1.01)):
            rows.append({
                "part": "servers", "kind": "round", "server": kind, "round": number, "seconds": slow * factor,
                "itl_p50_us": 6000 * slow * factor, "itl_mean_us": 6100 * slow * factor,
                "itl_p99_us": 7000 * slow * factor,
            })  # fmt: skip
    metrics = {"part": "servers", "kind": "metrics", "tp": 1, "lightllm_otel_distortion_ratio": 1.01}
    summary = overhead_claims.summarise([*rows, rows[-1] | {"round": 99}, metrics])["servers"]
    assert summary["rounds"] == 8
    assert summary["throughput_loss_percent"] == pytest.approx(100 * (1 - 1 / 1.01), abs=0.002)
    assert summary["itl_p50_increase_percent"] == pytest.approx(1.0, abs=0.002)
    assert summary["lightllm_otel_distortion_ratio"] == 1.01


def test_starts_are_compared_by_the_quickest_of_each():
    def start(server, seconds, tp=1):
        return {"part": "servers", "kind": "start", "tp": tp, "server": server, "seconds": seconds, "gpu_mib": 100}

    rows = [start("stock", 60.0), start("instrumented", 42.0), start("instrumented", 41.0), start("stock", 40.0),
            start("stock", 30.0, 2), start("instrumented", 33.0, 2), start("stock again", 20.0, 2), ring(1)]  # fmt: skip
    startup = overhead_claims.summarise(rows)["startup"]
    assert startup["tp1"] == {"starts_of_each": 2, "stock_seconds": 40.0, "instrumented_seconds": 41.0, "added_seconds": 1.0,
                              "added_percent": 2.5, "twins_seconds": 0.5}  # fmt: skip
    assert startup["tp2"]["stock_seconds"] == 20.0


def test_twins_errors_and_drops_of_all_ranks():
    other = {"state": "armed", "sizes": [1, 2], "bytes": 6 << 20, "seconds": 0.7}
    summary = overhead_claims.summarise(
        [ring(2), ring(2, rank=1, twins=other, errors=[0, 1], dropped={"pending_full": 2})]
    )
    assert summary["twin_mib"]["tp2"] == {"mib": 6.0, "graphs": 2, "mib_each": 3.0, "state": "armed"}
    assert summary["twin_mib"]["tp1"] is None
    assert (summary["errors"], summary["dropped"]) == (1, 2)


def test_a_part_that_failed_is_a_problem_of_the_result():
    rows = [{"part": "tp2", "kind": "problem", "problem": "tp2: not done after 300 s"}]
    assert overhead_claims.summarise(rows)["problems"] == ["tp2: not done after 300 s"]


def test_of_results_put_together_the_last_that_has_a_part_counts():
    older = {"rows": [{"merged": {}}, {"part": "paired", "kind": "hook"}, {"part": "moe", "kind": "cell"}]}
    newer = {"rows": [{"part": "paired", "kind": "tail"}]}
    assert overhead_claims.together([older, newer], ["moe"]) == newer["rows"]
    assert overhead_claims.together([older], []) == older["rows"][1:]


def test_the_default_of_eager_decode_has_the_cost_of_eager_steps_that_it_samples():
    shares = [{"kind": "case", "case": "eager_default", "sampled_percent": 100 / 64}]
    plain = [*case_rows("eager_default", 0.0), *case_rows("eager_steps_only", 0.0)]
    dear = overhead_claims.summarise([*plain, *case_rows("eager_decode_every_step", 39.0), *shares])["eager_default"]
    cheap = overhead_claims.summarise([*plain, *case_rows("eager_decode_every_step", 0.0), *shares])["eager_default"]
    assert dear["throughput_loss_percent"] - cheap["throughput_loss_percent"] == pytest.approx(1.0, abs=0.3)


def test_memory_of_ours_is_without_the_module_of_cupy():
    plugin = {"part": "paired", "kind": "plugin", "resident_mib": {"cupy": 10.0, "attach": 3.0, "plan": 0.5},
              "errors": [], "dropped": {}}  # fmt: skip
    assert overhead_claims.summarise([plugin])["resident_mib"]["total"] == 3.5


def test_the_same_on_another_machine_stands_apart_run_by_run():
    rows = case_rows("graph_default", 0.0)
    later = {
        "date": "2026-11-26",
        "commit": "abc",
        "rows": [
            {"merged": {}},
            *case_rows("graph_default", 2.0),
            {"part": "paired", "kind": "plugin", "resident_mib": {"cupy": 10.0, "plan": 25.0},
             "compiler_mib": {"cupy": 0.0, "plan": 15.0}, "errors": [1], "dropped": {}},
            {"part": "default", "kind": "plugin", "resident_mib": {"cupy": 10.0, "plan": 0.5}, "errors": [], "dropped": {}},
            {"part": "moe", "kind": "hook", "hook_ns": 1.0},
        ],
    }  # fmt: skip
    alone, together = (
        overhead_claims.summarise(rows),
        overhead_claims.summarise(overhead_claims.with_again(rows, later)),
    )
    assert together["graph_default"] == alone["graph_default"]
    assert "again" not in alone
    (found,) = together["again"]
    assert found["commit"] == "abc"
    assert found["graph_default"]["added_us"] > alone["graph_default"]["added_us"]
    assert {part: each["total"] for part, each in found["resident_mib"].items()} == {"paired": 25.0, "default": 0.5}
    assert found["compiler_mib"] == {"paired": 15.0}
    assert together["errors"] == 1
    twice = overhead_claims.with_again(overhead_claims.with_again(rows, later), {**later, "commit": "def"})
    assert [each["commit"] for each in overhead_claims.summarise(twice)["again"]] == ["abc", "def"]
    assert overhead_claims.together([{"rows": twice}], []) == twice
    failed = {**later, "rows": [{"part": "paired", "kind": "problem", "problem": "paired: not done"}]}
    assert overhead_claims.summarise(overhead_claims.with_again(rows, failed))["problems"] == ["paired: not done"]


def test_memory_of_a_library_is_what_of_its_file_is_resident():
    assert process_memory.resident_of("libc.so") > 100  # KiB: everything runs on it
    assert process_memory.resident_of("no-such-library") == 0
    grown = (
        process_memory.Grown(3.0, 2.0, 1.0) - process_memory.Grown(1.0, 1.0, 1.0) + process_memory.Grown(0.0, 0.5, 0.0)
    )
    assert grown == process_memory.Grown(2.0, 1.5, 0.0)
