"""From a log of steps to what a setting costs: on made-up steps, where the cost is known."""

import time
import types
from types import MappingProxyType

import numpy as np
import pairing
import pytest
import served_claims
import served_overhead
from model_servers import Arm, Column
from served_overhead import Incomplete, Load
from streams import Stream

LOAD = Load(batch=4, positions=256, block=32, dropped=16, spare=4)
ARMS = (Arm.ABSENT, Arm.DEFAULT)


def log_of(load, number, arms=ARMS, loss=0.0, python_us=0.0, noise=0.002, seed=0, before=3, lag=12):
    """Rows as the model process writes them: smaller batches, then a pass whose steps get longer with their context.

    The setting changes behind position 0 of each block and holds ``lag`` steps later. With it a step takes ``loss`` percent
    longer, and the thread ``python_us``.
    """
    random = np.random.default_rng(seed)
    schedule = load.schedule(4)
    positions = [-1] * before + list(range(load.positions + 2)) + [-1]
    rows = np.zeros((len(positions), len(Column)), np.int64)
    at, asked, real = 10**12, 0, [0] * lag
    for row, position in zip(rows, positions):
        real.append(asked)
        slower = real[-1 - lag]
        seconds = 7e-3 * (1 + 0.3 * max(position, 0) / load.positions) * (1 + noise * random.standard_normal())
        at += round(1e9 * seconds / (1 - slower * loss / 100))
        cpu = round(1e9 * (1e-3 * (1 + 0.05 * random.standard_normal()) + slower * python_us * 1e-6))
        row[:] = at, load.batch if position >= 0 else 1, position, int(arms[asked]), cpu // 2, cpu - cpu // 2
        if position >= 0 and position % load.block == 0:
            asked = int(schedule.is_on(number, position))
    return rows


def passes(load=LOAD, count=12, seed=0, **changes):
    logs = [log_of(load, number % 4, seed=100 * seed + number, **changes) for number in range(count)]
    return [served_overhead.pass_of(log, load, (), (number % 4, ARMS)) for number, log in enumerate(logs)]


def rows_of(case, found, load=LOAD, host="main", shape="llama-7b", **about):
    cells = served_overhead.cells_of(load, found)
    rows = pairing.cell_rows(case, cells["step"])
    rows += [{**row, "kind": "host_cell"} for row in pairing.cell_rows(case, cells["host"])]
    rows.append({"kind": "case", "case": case, "reference": "absent", "thread_clock_us": 0.5, **about})
    rows.append({"kind": "tail", **pairing.tail_row(case, cells["step"])})
    return [{**row, "host": host, "shape": shape} for row in rows]


class TestLog:
    def test_a_pass_is_read_from_the_longest_run_of_full_batches(self):
        found = served_overhead.pass_of(log_of(LOAD, 0), LOAD, (), (0, ARMS))
        assert found.seconds.shape == found.cpu.shape == (LOAD.positions,)
        assert found.seconds.mean() == pytest.approx(7e-3 * 1.15, rel=0.02)

    def test_a_batch_that_ends_too_early_is_not_compared(self):
        rows = log_of(LOAD, 0)
        with pytest.raises(Incomplete, match="257 are needed"):
            served_overhead.pass_of(rows[:-20], LOAD)
        rows[100, Column.POSITION] = -1
        rows[101:, Column.POSITION] -= rows[101, Column.POSITION]
        with pytest.raises(Incomplete, match="steps in a row"):
            served_overhead.pass_of(rows, LOAD)

    def test_steps_with_another_setting_than_was_asked_for_are_not_compared(self):
        rows = log_of(LOAD, 0)
        served_overhead.pass_of(rows, LOAD, (), (0, ARMS))
        with pytest.raises(Incomplete, match="another setting"):
            served_overhead.pass_of(rows, LOAD, (), (1, ARMS))
        rows[:, Column.ARM] = int(Arm.DEFAULT)
        with pytest.raises(Incomplete, match="another setting"):
            served_overhead.pass_of(rows, LOAD, (), (0, ARMS))

    def test_no_step_counts_before_the_setting_holds(self):
        """With a lag as long as the one that is dropped nothing of a loss leaks into the other setting."""
        late = Load(batch=4, positions=256, block=32, dropped=16, spare=4)
        found = [
            served_overhead.pass_of(log_of(late, number, loss=50.0, noise=0.0, lag=15), late, (), (number, ARMS))
            for number in range(2)
        ]
        estimate = pairing.throughput_loss(pairing.Sample.of_rows(rows_of("x", found, late)[:4]))
        assert estimate.value == pytest.approx(50.0, abs=1e-3)


class TestEstimates:
    @pytest.mark.parametrize("loss", [0.0, 0.1, 3.0])
    def test_a_known_loss_is_found_within_its_interval(self, loss):
        found = served_claims.of_shape(rows_of("steps", passes(loss=loss, seed=3)))["steps"]
        low, high = found["throughput_loss_percent_ci95"]
        assert low <= loss <= high
        assert high - low < 0.1
        assert found["throughput_loss_percent_of_all_pairs"] == pytest.approx(loss, abs=0.06)
        assert found["reference"] == "absent"

    def test_python_on_the_thread_is_found_to_a_few_microseconds_however_long_a_step_is(self):
        found = served_claims.of_shape(rows_of("unsampled", passes(python_us=9.0)))["unsampled"]
        low, high = found["host_added_us_ci95"]
        assert low <= 9.0 <= high
        assert high - low < 15
        assert found["host_us"] == pytest.approx(1000, rel=0.01)

    def test_a_coarse_thread_clock_says_nothing(self):
        rows = rows_of("unsampled", passes(python_us=9.0), thread_clock_us=10_000.0)
        assert "host_added_us" not in served_claims.of_shape(rows)["unsampled"]

    def test_the_default_has_the_cost_of_the_steps_that_it_samples(self):
        """Those few are among the pairs that are left out: 0.1 % of every step, and 2.9 % more of one in 64."""
        rows = rows_of("default", passes(loss=0.1, seed=1), steps_recorded=6400, steps_sampled=100)
        rows += rows_of("every_step", passes(loss=3.0, seed=2)) + rows_of("unsampled", passes(loss=0.1, seed=4))
        found = served_claims.of_shape(rows)["default"]
        assert found["throughput_loss_percent"] == pytest.approx(0.1 + 2.9 / 64, abs=0.05)
        assert (found["steps_recorded"], found["steps_sampled"]) == (6400, 100)

    def test_hosts_and_shapes_stand_apart(self):
        rows = rows_of("steps", passes(count=4)) + rows_of("steps", passes(count=4, loss=5.0), host="v1.1.0")
        rows += rows_of("steps", passes(count=4, loss=9.0), shape="qwen3-8b")
        found = served_claims.summarise(rows)
        assert found["main"]["llama-7b"]["steps"]["throughput_loss_percent"] == pytest.approx(0, abs=0.2)
        assert found["v1.1.0"]["llama-7b"]["steps"]["throughput_loss_percent"] == pytest.approx(5, abs=0.2)
        assert found["main"]["qwen3-8b"]["steps"]["throughput_loss_percent"] == pytest.approx(9, abs=0.2)

    def test_two_servers_in_turn_are_paired_by_position(self):
        stock, instrumented = passes(count=4), passes(count=4, seed=9)
        rows = []
        for number, (off, on) in enumerate(zip(stock, instrumented)):
            slower = served_overhead.Pass(
                off.seconds * 1.01, on.cpu, on.times, [Stream([0, 10**6, 3 * 10**6], (1, 2, 3))]
            )
            plain = served_overhead.Pass(off.seconds, off.cpu, off.times, [Stream([0, 10**6, 2 * 10**6], (1, 2, 3))])
            made = served_overhead.round_rows(LOAD, {True: slower, False: plain}, number)
            rows += [{**row, "case": "servers", "host": "main", "shape": "llama-7b"} for row in made]
        found = served_claims.of_shape(rows)["servers"]
        assert found["throughput_loss_percent"] == pytest.approx(100 * (1 - 1 / 1.01), abs=1e-3)
        assert found["reference"] == "another server"


class TestClient:
    def streams(self, found, load, number, factor):
        """Tokens of each step at every client, 1 ms after it; with the setting one in 40 comes late."""
        schedule = load.schedule(4)
        late = np.array([schedule.is_on(number, at) and at % 40 == 30 for at in range(load.positions)])
        lengths = np.where(late, factor, 1.0) * 1e-3
        return [
            Stream([int(at + 1e9 * length) for at, length in zip(found.times, lengths)], ()) for _ in range(load.batch)
        ]

    def tail(self, factor):
        found = []
        for number in range(4):
            each = served_overhead.pass_of(log_of(LOAD, number, noise=0.0), LOAD, (), (number, ARMS))
            found.append(
                served_overhead.Pass(each.seconds, each.cpu, each.times, self.streams(each, LOAD, number, factor))
            )
        return served_overhead.client_tail(served_overhead.client_intervals(LOAD, found))

    def test_tokens_that_come_late_with_the_setting_show_in_the_percentile(self):
        assert self.tail(3.0)["client_p99_increase_percent"] > 10
        assert abs(self.tail(1.0)["client_p99_increase_percent"]) < 1

    def test_intervals_belong_to_the_setting_of_their_block(self):
        each = served_overhead.pass_of(log_of(LOAD, 0, noise=0.0), LOAD, (), (0, ARMS))
        one = served_overhead.Pass(each.seconds, each.cpu, each.times, self.streams(each, LOAD, 0, 1.0))
        found = served_overhead.client_intervals(LOAD, [one])
        assert [(block, on) for block, on, _ in found] == [(at, at % 2 == 1) for at in range(8)]
        counted = LOAD.batch * (LOAD.block - LOAD.dropped)
        assert all(abs(len(seconds) - counted) <= LOAD.batch for _, _, seconds in found)

    def test_without_streams_there_is_no_percentile(self):
        assert served_overhead.client_tail([]) == {}


def test_cases_are_pairs_of_passes_and_never_compare_a_setting_with_itself():
    for reference in (Arm.ABSENT, Arm.OFF):
        found = served_overhead.cases(1.0, reference)
        assert all(case.passes % 2 == 0 and case.arm != case.reference == reference for case in found)
        assert found[0].name == "default"


class FakeServer:
    """A model process whose steps take ``LOSS`` percent longer with a setting; ``broken``: passes that end too early."""

    port = 1
    kind = types.SimpleNamespace(name="fake", instrumented=True)
    LOSS = MappingProxyType({Arm.DEFAULT: 0.2, Arm.EVERY_STEP: 3.0, Arm.UNSAMPLED: 0.1, Arm.STEPS: 0.1, Arm.OFF: 0.05})

    def __init__(self, load, broken=()):
        self._load, self._broken, self.passes, self.held = load, broken, [], []
        self.log = types.SimpleNamespace(words=[0] * 64, rows=self._rows)
        self._turns = (0, (Arm.ABSENT, Arm.ABSENT))

    def watch(self, batch):
        self._turns = (0, (Arm.DEFAULT, Arm.DEFAULT))

    def alternate(self, batch, block, number, arms):
        self._turns = number, arms

    def hold(self, arm):
        self.held.append(arm)

    def ring(self):
        return {"steps": 640 * len(self.passes), "sampled_steps": 10 * len(self.passes)}

    def _rows(self, first):
        number, arms = self._turns
        self.passes.append((arms[1], number))
        rows = log_of(self._load, number, arms, self.LOSS.get(arms[1], 0.0), seed=len(self.passes))
        return rows[:50] if len(self.passes) in self._broken else rows


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.setattr(served_overhead, "together", lambda port, requests: [Stream([], ())] * LOAD.batch)

    def run(cases, seconds=600.0, **changes):
        server, rows = FakeServer(LOAD, **changes), []
        about = {"host": "main", "shape": "llama-7b"}
        served_overhead.Measurement(server, LOAD, rows.extend, about).run(cases, time.monotonic() + seconds)
        return server, rows, served_claims.of_shape(rows)

    return run


class TestMeasurement:
    def test_every_setting_is_found_at_its_cost(self, measured):
        cases = served_overhead.cases(1.0, Arm.ABSENT)
        server, _, found = measured(cases)
        for case in cases:
            name = "throughput_loss_percent_of_all_pairs"
            assert found[case.name][name] == pytest.approx(FakeServer.LOSS[case.arm], abs=0.12)
        assert sum(arm is Arm.DEFAULT for arm, _ in server.passes) == 12
        assert found["default"]["steps_sampled"] / found["default"]["steps_recorded"] == pytest.approx(1 / 64)
        assert server.held == [Arm.DEFAULT]

    def test_settings_take_turns_and_each_ones_passes_go_abba(self, measured):
        server, _, _ = measured(served_overhead.cases(1.0, Arm.ABSENT))
        assert len({arm for arm, _ in server.passes[:10]}) >= 3
        numbers = [number for arm, number in server.passes if arm is Arm.DEFAULT]
        assert numbers == [0, 1, 2, 3] * 3

    def test_time_that_is_up_leaves_what_was_measured(self, measured):
        server, _, found = measured(served_overhead.cases(1.0, Arm.ABSENT), seconds=-1.0)
        assert server.passes == []
        assert found == {"incomplete": []}

    def test_a_pass_that_cannot_be_compared_is_run_again_in_the_next_turn(self, measured):
        cases = [served_overhead.Case("steps", Arm.STEPS, 4)]
        _, _, found = measured(cases, broken=(2,))
        assert "steps in a row" in found["incomplete"][0]
        assert found["steps"]["pairs"] == 2 * 4 // 2 * LOAD.positions // 4 // 2
