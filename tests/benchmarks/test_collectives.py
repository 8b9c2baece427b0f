"""From the records of two made-up ranks to what is claimed: where the transfer, the delay and the noise are known."""

import itertools

import collectives_claims
import collectives_rows
import numpy as np
import pytest
import records
import witness
from kernels import Kernel
from rank import AHEAD, EAGER, GRAPH, NOBODY, PREFILL, SEEN, Sizes, passes

from lightllm_otel.records import layout
from lightllm_otel.records.vocabulary import Mode, Operator, Phase, Site

LAYERS = 3
TRANSFER = 2.0**-7
PAYLOAD = 1 << 24


class MadeUp:
    """``add``: a pass of two ranks, in which ``slow`` comes later by ``delay`` seconds; ``seen``: what CUPTI
    says a call took on each of them.
    """

    def __init__(self):
        self.passes, self.number = [], 0
        self.cells = [[], []]
        self.own = [[], []]
        self.seen = [{}, {}]

    def add(self, kind, mode=GRAPH, steps=4, slow=NOBODY, delay=0.0, transfer=TRANSFER, own=None, seen=None):
        first = self.number
        for rank, seconds in enumerate(seen or ()):
            self.seen[rank][str(first)] = [9.0, *[seconds] * (2 * LAYERS)] * steps
        for _ in range(steps):
            for rank in range(2):
                waits = delay if slow not in (NOBODY, rank) else 0.0
                seconds = np.full((LAYERS, 2), transfer + waits)
                intervals = records.collectives(seconds, payload=PAYLOAD, embedding=9 * transfer)
                phase = Phase.PREFILL if mode == PREFILL else Phase.DECODE
                step = records.with_collectives(
                    self.number, intervals, phase, Mode.GRAPH if mode == GRAPH else Mode.EAGER
                )
                self.cells[rank].append(step)
                if own is not None:
                    self.own[rank] += [{"seconds": own, "bytes": PAYLOAD}] * len(intervals)
            self.number += 1
        self.passes.append({"kind": kind, "mode": mode, "steps": steps, "slow": slow, "delay_ms": 1e3 * delay,
                            "first": first, "last": self.number - 1})  # fmt: skip
        return self

    def run(self):
        left = [
            {"passes": self.passes, "own": self.own[rank], "seen": self.seen[rank],
             "facts": {**records.FACTS, "tp": 2}, "overwrites": 0,
             "dropped": [0] * 8, "errors": [0] * 8, "clock_quantum": 32e-9, "boundary_cost": 1e-6,
             "stamp_quantum": 32e-9, "stamp_cost": 1e-6}
            for rank in range(2)
        ]  # fmt: skip
        return collectives_rows.Run([records.cells(*steps) for steps in self.cells], left)


def rows(made, tp=2, one_gpu=True):
    return [{"tp": tp, "one_gpu": one_gpu, **row} for row in collectives_rows.rows_of(made.run(), tp)]


def test_a_delay_moves_into_the_wait_and_names_the_rank():
    made = MadeUp().add("plain").add("slow", slow=1, delay=2.0**-6).add("slow", slow=0, delay=2.0**-5).add("plain")
    found = rows(made)
    slow = [row for row in found if row["kind"] == "slow"]
    assert [row["transfer_us"] for row in slow] == [7812.5, 7812.5]
    assert [row["wait_us"] for row in slow] == [[15625.0, 0.0], [0.0, 31250.0]]
    assert [(row["named_steps"], row["named_calls"], row["calls"]) for row in slow] == [(4, 24, 24)] * 2
    assert [row["transfer_us_by_last"] for row in slow] == [[None, 7812.5], [7812.5, None]]
    assert [row["calls_by_last"] for row in slow] == [[0, 24], [24, 0]]
    summary = collectives_claims.summarise(found)
    assert summary["straggler_named_percent"] == 100.0
    assert summary["transfer_shift_percent"] == 0.0
    assert (summary["unmatched"], summary["problems"], summary["slow_steps"]) == (0, [], 8)


def test_launched_ahead_the_call_right_after_the_hold_names_nobody():
    made = MadeUp().add("plain", mode=AHEAD).add("slow", mode=AHEAD, slow=1, delay=2.0**-10)
    for number, steps in enumerate(made.cells):
        for _, intervals in steps:
            first = (intervals["layer"] == 0) & (intervals["site"] == Site.ATTENTION.code)
            intervals["seconds"][first] += 1.0 if number == 1 else 0.0  # rank 0's host was a second later
    slow = next(row for row in rows(made) if row["kind"] == "slow")
    assert (slow["named_steps"], slow["calls"], slow["told"]) == (4, 20, 20)
    assert slow["wait_us"] == [976.562, 0.0]


def test_a_name_is_right_where_cupti_saw_the_same_rank_come_last():
    late, quick = TRANSFER, TRANSFER + 2.0**-10
    made = MadeUp().add("slow", mode=SEEN, slow=1, delay=2.0**-10, seen=[quick, late])
    row = next(row for row in rows(made) if row["kind"] == "slow")
    assert (row["right_steps"], row["right_calls"], row["judged_calls"]) == (4, 24, 24)
    assert (row["seen_last"], row["named_last"], row["kernel_us"]) == ([1] * 4, [1] * 4, 7812.5)
    assert row["seen_wait_us"] == [[976.562, 0.0]] * 4


def test_a_name_is_wrong_where_cupti_saw_another_rank_come_last_or_none():
    another = MadeUp().add("plain", mode=SEEN, slow=1, delay=2.0**-10, seen=[TRANSFER, TRANSFER + 2.0**-10])
    row = next(row for row in rows(another) if row["kind"] == "plain")
    assert (row["right_steps"], row["right_calls"], row["judged_calls"]) == (0, 0, 24)
    nobody = MadeUp().add("plain", mode=SEEN, slow=1, delay=2.0**-10, seen=[TRANSFER, TRANSFER])
    row = next(row for row in rows(nobody) if row["kind"] == "plain")
    assert (row["right_steps"], row["seen_last"]) == (0, [NOBODY] * 4)


def test_kernels_that_do_not_fit_the_calls_are_a_problem():
    made = MadeUp().add("plain", mode=SEEN, seen=[TRANSFER, TRANSFER])
    made.seen[1]["0"].pop()
    found = rows(made)
    assert collectives_claims.summarise(found)["problems"] == ["tp 2: CUPTI saw [28, 27] all_reduce in 4 steps of 7"]


def test_kernels_of_an_all_reduce_are_known_by_their_names():
    names = ("ncclDevKernel_AllReduce_Sum_f16_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
             "void vllm::cross_device_reduce_1stage<half, 2>(vllm::RankData*)",
             "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "nvjet_hsh_64x8")  # fmt: skip
    made = [Kernel(name, 1000 * at, 1000 * at + at + 1) for at, name in enumerate(names)]
    assert witness.durations(made) == pytest.approx([1e-9, 2e-9])


def test_a_delay_that_changes_which_sites_calls_count_is_no_shift():
    made = MadeUp().add("plain", mode=EAGER).add("plain", mode=EAGER).add("slow", mode=EAGER, slow=1, delay=2.0**-6)
    for steps in made.cells:
        for record, intervals in steps:
            number = np.frombuffer(record, layout.STEP)[0]["number"]
            after_ffn = intervals["site"] == Site.FFN.code
            intervals["seconds"][after_ffn] += TRANSFER / 8
            if number < 8:  # without a delay only what follows a feed-forward says what moving took
                intervals["flags"][intervals["site"] == Site.ATTENTION.code] |= layout.STARVED
    found = rows(made)
    plain, slow = (next(row for row in found if row["kind"] == kind) for kind in ("plain", "slow"))
    assert plain["transfer_us_by_site"] == {"ffn": 8789.062}
    assert slow["transfer_us_by_site"] == {"attention": 7812.5, "ffn": 8789.062}
    assert slow["transfer_us"] < plain["transfer_us"]
    assert collectives_claims.summarise(found)["transfer_shift_percent_with_noise"] == 0.0


def test_only_the_shift_beyond_what_passes_without_a_delay_show_is_claimed():
    made = (
        MadeUp()
        .add("plain")
        .add("plain", transfer=1.02 * TRANSFER)
        .add("slow", slow=1, delay=0.01, transfer=1.11 * TRANSFER)
    )
    summary = collectives_claims.summarise(rows(made))
    assert summary["transfer_noise_percent"] == {GRAPH: pytest.approx(1.98, abs=0.01)}
    assert summary["transfer_shift_percent_with_noise"] == pytest.approx(9.9, abs=0.01)
    assert summary["transfer_shift_percent"] == pytest.approx(9.9 - 1.98, abs=0.01)


def test_ranks_with_a_gpu_each_are_what_is_claimed_and_those_on_one_gpu_stand_beside_them():
    shared = rows(MadeUp().add("plain").add("plain").add("slow", slow=1, delay=0.01, transfer=0.75 * TRANSFER))
    apart = rows(
        MadeUp()
        .add("plain", transfer=TRANSFER / 64)
        .add("plain", transfer=TRANSFER / 64)
        .add("slow", slow=1, delay=0.01, transfer=TRANSFER / 64),
        one_gpu=False,
    )
    summary = collectives_claims.summarise([*shared, *apart])
    assert summary["transfer_shift_percent"] == 0.0
    shifts = {name: each["transfer_shift_percent"] for name, each in summary["slow_groups"].items()}
    assert shifts == {"a GPU each": 0.0, "one GPU": 25.0}
    assert summary["slow_steps"] == 8
    assert collectives_claims.summarise(shared)["transfer_shift_percent"] == 25.0


def test_a_wrong_name_and_no_name_count_against_it():
    made = MadeUp().add("plain").add("slow", slow=1, delay=0.01).add("plain")
    made.passes[1]["slow"] = 0
    assert collectives_claims.summarise(rows(made))["straggler_named_percent"] == 0.0
    made = MadeUp().add("plain").add("slow", slow=1, delay=1e-7).add("plain")
    assert collectives_claims.summarise(rows(made))["straggler_named_percent"] == 0.0


def test_bus_bandwidth_is_compared_with_the_benchmarks_own_times_and_formula():
    summary = collectives_claims.summarise(rows(MadeUp().add("bandwidth", PREFILL, own=TRANSFER)))
    assert summary["bus_bytes_per_second"] == [round(PAYLOAD / TRANSFER)]  # of two ranks: the algorithm's
    assert summary["bus_bandwidth_error_percent"] == 0.0
    summary = collectives_claims.summarise(rows(MadeUp().add("bandwidth", PREFILL, own=TRANSFER / 1.01)))
    assert summary["bus_bandwidth_error_percent"] == pytest.approx(0.99, abs=0.01)


def test_one_rank_has_no_bandwidth_and_no_problem_with_it():
    made = MadeUp().add("bandwidth", PREFILL, own=TRANSFER)
    assert [row for row in rows(made, tp=1) if row["kind"] == "bandwidth"] == []


def test_own_calls_that_are_not_the_plugins_are_a_problem():
    made = MadeUp().add("bandwidth", PREFILL, own=TRANSFER)
    made.own[1].pop()
    assert "own calls" in collectives_claims.summarise(rows(made))["problems"][0]


def test_shares_are_those_of_all_steps_but_the_first():
    made = MadeUp()
    for rank, number in itertools.product(range(2), range(3)):
        calls = [(Operator.FFN, 0.5 if number else 99.0), (Operator.ATTENTION, 0.25), (Operator.GAP, 0.25)]
        made.cells[rank].append(records.step(Phase.DECODE, Mode.GRAPH, number=number, operators=calls))
    made.passes.append(
        {"kind": "share", "mode": GRAPH, "steps": 3, "slow": NOBODY, "delay_ms": 0.0, "first": 0, "last": 2}
    )
    summary = collectives_claims.summarise(rows(made))
    assert summary["shares"] == {"tp2": {"decode": {"ffn": 50.0, "gap": 25.0, "attention": 25.0}}}
    assert summary["leads"] == {"tp2": {"decode": "ffn"}}


def test_every_rank_is_slowed_in_both_modes_with_undelayed_passes_around():
    made = passes(Sizes(), tp=2, graphs=True, inject=True)
    slow = [(each.mode, each.slow, each.delay_ms) for each in made if each.kind == "slow"]
    assert slow == list(itertools.product((GRAPH, EAGER), (0, 1), (5.0, 10.0, 20.0)))
    plain = [each.mode for each in made if each.kind == "plain"]
    assert plain == [GRAPH] * 3 + [EAGER] * 3


def test_a_group_without_a_slow_rank_has_shares_only():
    assert {each.kind for each in passes(Sizes(), tp=4, graphs=True, inject=False)} == {"warm", "share"}
