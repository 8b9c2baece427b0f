"""Sampling, boundaries, step reader, calibration: arithmetic with exact values."""

import fakes
import numpy as np
import pytest
from fake_gpu import Gpu, Tensor

from lightllm_otel.records import layout
from lightllm_otel.records.vocabulary import Operator, Phase, Site
from lightllm_otel.records.writer import RingWriter
from lightllm_otel.worker.gpu.boundaries import Boundary, BoundaryCodes
from lightllm_otel.worker.gpu.boundary_recorder import EagerRecorder
from lightllm_otel.worker.gpu.calibration import (
    PAIRS,
    Calibration,
    calibrate,
    cost_of_timestamps,
    cost_on_branches,
    quantum_of,
    saving_of_edges,
)
from lightllm_otel.worker.gpu.clock import HostClock
from lightllm_otel.worker.gpu.handles import Pool
from lightllm_otel.worker.gpu.step import Step, Work
from lightllm_otel.worker.gpu.step_reader import StepReader, without_cost
from lightllm_otel.worker.gpu.timer import Timer
from lightllm_otel.worker.gpu.timestamp_kernels import KEPT, Overwritten, slot_intervals
from lightllm_otel.worker.sampling import Sampling


def test_one_decode_step_in_n_is_sampled():
    due = [Sampling(64).due(number, Phase.DECODE, 20) for number in range(64_000)]
    assert 900 < sum(due) < 1100


def test_sampling_has_no_rhythm_that_the_hosts_could_beat_with():
    due = Sampling(16)
    for stride in (2, 3, 4, 8, 16, 32):
        hits = sum(due.due(number, Phase.DECODE, 1) for number in range(0, 16_000 * stride, stride))
        assert 800 < hits < 1200, stride


def test_every_large_prefill_is_sampled_and_one_small_one_in_four():
    sampling = Sampling(64)
    assert all(sampling.due(number, Phase.PREFILL, 512) for number in range(100))
    small = sum(sampling.due(number, Phase.PREFILL, 511) for number in range(4000))
    assert 900 < small < 1100


def test_every_step_is_sampled_with_one():
    assert all(Sampling(1).due(number, phase, 1) for number in range(100) for phase in Phase)


def test_all_ranks_decide_alike():
    assert [Sampling(7).due(n, Phase.DECODE, 1) for n in range(500)] == [
        Sampling(7).due(n, Phase.DECODE, 1) for n in range(500)
    ]


def test_pieces_of_an_operator_are_one_row_and_gaps_are_one_row():
    boundary_codes = BoundaryCodes()
    gap, head = boundary_codes.code(Boundary(Operator.GAP)), boundary_codes.code(Boundary(Operator.LM_HEAD))
    gather = boundary_codes.collective(Operator.ALL_GATHER, head)
    shape = boundary_codes.shape([gap, boundary_codes.part(head), gather, head, gap])
    assert shape.template["operator"].tolist() == [
        op.code for op in (Operator.GAP, Operator.ALL_GATHER, Operator.LM_HEAD)
    ]
    assert shape.row.tolist() == [0, 2, 1, 2, 0]
    assert Site.of(int(shape.template["site"][1])) is Site.LM_HEAD


def test_a_step_that_ends_inside_an_operator_keeps_what_it_had():
    boundary_codes = BoundaryCodes()
    head = boundary_codes.code(Boundary(Operator.LM_HEAD))
    shape = boundary_codes.shape([boundary_codes.part(head)])
    assert shape.template["operator"].tolist() == [Operator.LM_HEAD.code]


def test_shapes_are_kept_but_not_without_bound():
    boundary_codes = BoundaryCodes()
    codes = [boundary_codes.code(Boundary(Operator.FFN, layer)) for layer in range(200)]
    first = boundary_codes.shape(codes[:2])
    assert boundary_codes.shape(codes[:2]) is first
    for length in range(3, 180):
        boundary_codes.shape(codes[:length])
    assert len(boundary_codes._shapes) <= BoundaryCodes._KEPT


def sampled_step(clock, now, durations, starved):
    """Return a step of consecutive calls of ffn, one in each layer, and a step reader for it."""
    step = Step(7, Work(Phase.DECODE, 2, 2, 100), clock.handles(2), None, 5.0)
    boundary_codes = BoundaryCodes()
    gap = boundary_codes.code(Boundary(Operator.GAP))
    clock.record(step.ends[0], None)
    step.closed = True
    step.recorder = EagerRecorder(
        clock,
        step.ends[0],
        gap,
        clock.handles(len(durations)),
        None,
        False,
        lambda: now[0],
        [0, 0, 0],
        boundary_codes.reaches,
        0,
    )
    for at, duration in enumerate(durations, 1):
        now[0] += duration
        code = boundary_codes.code(Boundary(Operator.FFN, at))
        if at == len(durations):
            step.recorder.end(code, step.ends[1])
            clock.record(step.ends[1], None)
        else:
            step.recorder.record(code)
    step.recorder.before[1:] = starved
    return step, StepReader(clock, boundary_codes, boundary_codes.code(Boundary(Operator.GAP, -2)), gap)


def unpacked(step):
    return np.frombuffer(step, layout.STEP)[0]


def test_the_cost_of_boundaries_is_subtracted_and_accounted_for():
    now = [0.0]
    step, step_reader = sampled_step(fakes.ManualClock(now), now, [8.0, 4.0, 2.0], [False, False, False])
    step_reader.calibration = Calibration(boundary_cost=0.5)
    packed, intervals = step_reader(step, None, True)
    record = unpacked(packed)
    assert intervals["seconds"].tolist() == [7.5, 3.5, 1.5]
    assert record["overhead_seconds"] == 1.5
    assert intervals["seconds"].sum() + record["overhead_seconds"] == record["seconds"] == record["closure_seconds"]


def test_a_timestamp_on_the_chain_has_a_cost_of_its_own_from_where_they_begin():
    calibration = Calibration().learned(0.25, chained=False)
    typical = Calibration().learned(None, chained=True).chained_cost  # it could not be found out
    assert typical == pytest.approx(1.1e-6)
    assert calibration.costs(4, chained_from=2).tolist() == [typical, 0.25, typical, typical]
    both = calibration.learned(1.0, chained=True)
    assert both.costs(4, chained_from=2).tolist() == [1.0, 0.25, 1.0, 1.0]  # so is the first one
    assert both.costs(4, chained_from=-1).tolist() == [0.25] * 4
    assert both.most_cost == 1.0


def pairs_of(cost, spread, count=100):
    """Return pairs of replays, 10 ms without and longer with ``count`` timestamps of ``cost`` ± ``spread`` seconds each."""
    about = np.linspace(-spread, spread, PAIRS - 1)
    return np.array([(0.0, 1.0), *((0.01, 0.01 + count * (cost + off)) for off in about)])


@pytest.mark.parametrize(
    ("cost", "spread", "learned"),
    [(1.2e-6, 0.1e-6, 1.2e-6), (1.2e-6, 0.8e-6, 1.2e-6), (1.2e-6, 3e-6, None), (0.1e-6, 0.2e-6, 0.1e-6),
     (0.1e-6, 0.5e-6, None), (6e-6, 0.1e-6, None), (-1e-6, 0.1e-6, 0.0)],
)  # fmt: skip
def test_what_a_timestamp_costs_is_learned_where_pairs_agree_on_it(cost, spread, learned):
    assert cost_of_timestamps(pairs_of(cost, spread), 100) == (
        pytest.approx(learned, abs=1e-12) if learned else learned
    )


def test_a_pair_that_could_not_be_timed_leaves_the_cost_unknown():
    pairs = pairs_of(1.2e-6, 0.1e-6)
    pairs[3, 1] = np.nan
    assert cost_of_timestamps(pairs, 100) is None


def test_what_kernels_save_behind_programmatic_dependencies_is_given_back_to_their_intervals():
    calibration = Calibration().learned(0.25, chained=False, edge_saving=0.5)
    assert calibration.costs(4, chained_from=-1, programmatic=(0, 1, 0, 2)).tolist() == [0.25, -0.25, 0.25, -0.75]
    assert calibration.costs(4, chained_from=-1).tolist() == [0.25] * 4  # where they are not known
    assert calibration.learned(1.0, chained=True).edge_saving == 0.5


@pytest.mark.parametrize(
    ("cost", "saving", "spread", "learned"),
    [(0.2e-6, 0.64e-6, 0.0, 0.64e-6), (0.2e-6, 0.64e-6, 0.2e-6, 0.64e-6), (0.2e-6, 0.64e-6, 3e-6, None),
     (0.2e-6, -0.3e-6, 0.0, None), (0.2e-6, 6e-6, 0.0, None)],
)  # fmt: skip
def test_what_a_programmatic_dependency_saves_is_what_the_cost_of_timestamps_does_not_explain(
    cost, saving, spread, learned
):
    pairs = pairs_of(cost, spread)
    pairs[:, 1] += 5e-6 - 80 * saving
    found = saving_of_edges(pairs, 100, 5e-6, cost, 80)
    assert found == (pytest.approx(learned, abs=1e-12) if learned else learned)


def test_a_timestamp_on_a_branch_is_timed_between_kernels_without_dependencies():
    gpu = Gpu()
    timestamps, graphs = fakes.FakeTimestamps(gpu, cost=2**-20), fakes.FakeGraphs(gpu)
    assert cost_on_branches(timestamps, graphs, Tensor(4, 8)) == 2**-20
    assert timestamps.joined == 2  # a capture that ends with a loose branch fails


def test_a_timestamp_on_a_branch_has_no_known_cost_while_another_process_uses_the_gpu(monkeypatch):
    gpu = Gpu()
    timestamps, graphs = fakes.FakeTimestamps(gpu, cost=2**-20), fakes.FakeGraphs(gpu)
    undisturbed = graphs.seconds
    slow = iter(np.tile([0.0, 0.0, 0.0, 20e-6], PAIRS))
    monkeypatch.setattr(graphs, "seconds", lambda graph: undisturbed(graph) + next(slow))
    assert cost_on_branches(timestamps, graphs, Tensor(4, 8)) is None


def test_nothing_is_subtracted_where_the_gpu_waited_for_the_host():
    now = [0.0]
    step, step_reader = sampled_step(fakes.ManualClock(now), now, [8.0, 4.0], [True, False])
    step_reader.calibration = Calibration(boundary_cost=0.5)
    _record, intervals = step_reader(step, None, True)
    assert intervals["seconds"].tolist() == [8.0, 3.5]
    assert (intervals["flags"] & layout.STARVED).tolist() == [layout.STARVED, 0]


def test_where_the_gpu_waited_for_the_host_the_record_says_how_long_that_was_launching():
    now = [0.0]
    step, step_reader = sampled_step(fakes.ManualClock(now), now, [40e-6, 20e-6, 500e-6], [True, False, True])
    _record, intervals = step_reader(step, None, True)
    first, second, third = layout.launching_seconds(intervals["flags"], np.nan)
    assert 40e-6 <= first < 40e-6 * 1.1
    assert second == 0.0
    assert 500e-6 <= third < 500e-6 * 1.1


def test_launching_ends_before_the_boundary_is_recorded():
    """The time of recording itself, and the time after it, belong to the next interval."""
    now = [0.0]
    clock = fakes.ManualClock(now)
    record = clock.record

    def slow(handle, stream):
        record(handle, stream)
        now[0] += 1e-3

    clock.record = slow
    step, step_reader = sampled_step(clock, now, [40e-6, 20e-6], [True, True])
    _record, intervals = step_reader(step, None, True)
    first, second = layout.launching_seconds(intervals["flags"], np.nan)
    assert 40e-6 <= first < 50e-6
    assert 1.02e-3 <= second < 1.2e-3


def test_pieces_of_an_operator_add_up_what_launching_took():
    now = [0.0]
    clock, boundary_codes = fakes.ManualClock(now), BoundaryCodes()
    gap, part = boundary_codes.code(Boundary(Operator.GAP)), boundary_codes.code(Boundary(Operator.FFN, 0))
    step = Step(7, Work(Phase.DECODE, 2, 2, 100), clock.handles(2), None, 5.0)
    clock.record(step.ends[0], None)
    step.closed = True
    step.recorder = EagerRecorder(
        clock, step.ends[0], gap, clock.handles(4), None, False, lambda: now[0], [0, 0, 0], boundary_codes.reaches, 0
    )
    for seconds, code in (
        (30e-6, boundary_codes.part(part)),
        (8e-6, boundary_codes.code(Boundary(Operator.ALL_REDUCE, 0))),
        (34e-6, part),
    ):
        now[0] += seconds
        step.recorder.record(code)
    step.recorder.before[1:] = [True, False, True]
    _record, intervals = StepReader(clock, boundary_codes, boundary_codes.code(Boundary(Operator.GAP, -2)), gap)(
        step, None, True
    )
    launching = dict(zip(intervals["operator"].tolist(), layout.launching_seconds(intervals["flags"], np.nan)))
    assert 64e-6 <= launching[Operator.FFN.code] < 64e-6 * 1.1
    assert launching[Operator.ALL_REDUCE.code] == 0.0


@pytest.mark.parametrize("seconds", [1e-9, 0.9e-6, 1e-6, 3.3e-6, 1e-3, 49e-3, 50.5e-3])
def test_a_launching_time_is_never_rounded_down(seconds):
    flags = layout.STARVED | layout.launching_bits(np.array([seconds]))
    assert flags[0] & layout.STARVED
    assert seconds <= layout.launching_seconds(flags, np.nan)[0] <= max(seconds * 1.1, 1e-6)


def test_a_launching_time_beyond_what_the_bits_hold_is_no_bound_and_none_is_unknown():
    flags = layout.STARVED | layout.launching_bits(np.array([50.6e-3, 3600.0]))
    assert layout.launching_seconds(flags, np.nan).tolist() == [np.inf, np.inf]
    assert layout.launching_seconds(np.array([layout.STARVED, 0], np.uint8), 0.25).tolist() == [0.25, 0.0]


def test_no_interval_is_negative_and_the_operator_is_right_all_the_same():
    now = [0.0]
    step, step_reader = sampled_step(fakes.ManualClock(now), now, [0.25, 4.25], [False, False])
    step_reader.calibration = Calibration(boundary_cost=0.5)
    packed, intervals = step_reader(step, None, True)
    assert intervals["seconds"].tolist() == [0.0, 3.5]  # together 4.5 less two boundaries
    assert unpacked(packed)["overhead_seconds"] == 1.0


def test_the_subtraction_is_unbiased_whatever_the_timers_quantum_is():
    """True durations of some microseconds, a boundary's cost of 0.7, a timer that steps by 1.024 (as on the A40)."""
    random = np.random.default_rng(1)
    true, cost, quantum = random.uniform(0.1e-6, 9e-6, 4000), 0.7e-6, 1.024e-6
    boundary_codes = BoundaryCodes()
    codes = [boundary_codes.code(Boundary(Operator.FFN, layer)) for layer in range(32)]
    shape = boundary_codes.shape(codes)
    for step in (32e-9, quantum):
        ends = np.concatenate(([0.0], np.cumsum(true + cost))) + random.uniform(0, step)
        read = np.diff(ends - ends % step)
        net = np.concatenate([without_cost(part, np.full(32, cost), shape) for part in read.reshape(-1, 32)])
        assert net.min() >= 0
        assert net.mean() == pytest.approx(true.mean(), rel=0.01)


def test_a_large_payload_does_not_overflow():
    now = [0.0]
    step, step_reader = sampled_step(fakes.ManualClock(now), now, [1.0], [False])
    step.recorder.payloads.append((1, 2**40))
    _, intervals = step_reader(step, None, True)
    assert intervals["payload_bytes"].tolist() == [2**32 - 1]


def test_a_slot_that_a_later_replay_took_is_not_read_as_the_earlier_one():
    slot = np.array([12, 1000, 3000, 3500], np.int64)  # filled by the twelfth replay, number 11
    assert slot_intervals(slot, 11, 3).tolist() == pytest.approx([2e-6, 5e-7])
    with pytest.raises(Overwritten):
        slot_intervals(slot, 11 - KEPT, 3)
    with pytest.raises(RuntimeError, match="left no timestamps"):
        slot_intervals(slot, 11 + KEPT, 3)


def test_the_quantum_is_the_smallest_step_between_values():
    assert quantum_of(np.array([64e-9, 96e-9, 64e-9, 160e-9])) == pytest.approx(32e-9)
    assert quantum_of(np.array([1024e-9] * 5)) == pytest.approx(1024e-9)
    assert quantum_of(np.array([])) == 0.0


def test_calibration_gives_up_on_a_gpu_that_does_not_answer():
    class Stuck(HostClock):
        def done(self, handle):
            return False

    assert calibrate(Stuck()).boundary_cost == 0.0


def test_calibration_takes_the_median_interval():
    ticks = iter(np.cumsum([2.0] * 100).tolist())
    calibration = calibrate(HostClock(lambda: next(ticks)))
    assert calibration.boundary_cost == 2.0
    assert calibration.quantum == 2.0


def test_a_pool_is_bounded_and_gives_blocks_out_again():
    pool = Pool(HostClock(), size=2, limit=2, ready=1)
    first, second = pool.take(), pool.take()
    assert pool.take() is None
    pool.give(first)
    assert pool.take() is first
    assert second is not first


def test_a_packed_step_has_the_fields_of_the_ring_in_their_places():
    names = layout.STEP.names
    values = list(range(1, len(names) + 1))
    record = unpacked(layout.PACKED_STEP.pack(*values))
    assert [int(record[name]) for name in names] == values


def test_a_step_is_in_flight_in_the_ring_until_the_gpu_has_passed_its_end(tmp_path):
    now = [1000.0]
    clock, ring = fakes.ManualClock(now), RingWriter(tmp_path / "rank-0.ring", 1)
    timer = Timer(clock, ring, wall_clock=lambda: 1e9 + now[0])
    clock.frontier = 0.0
    timer.leave(timer.enter(Work(Phase.DECODE, 1, 1, 1), 7, due=True))
    for _ in range(3):
        now[0] += 30.0
        timer.tick()
        assert ring.header[["in_flight", "in_flight_number", "in_flight_since"]].tolist() == [(1, 7, 1e9 + 1000.0)]
        assert ring.header["steps"] == 0
    clock.frontier = float("inf")
    timer.tick()
    assert ring.header[["in_flight", "steps"]].tolist() == [(0, 1)]
    ring.close()
