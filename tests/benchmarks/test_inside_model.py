"""What the benchmarks put into a model process: it logs, switches and marks, and the host never notices."""

import collections
import functools
import itertools
import json
import sys
import threading
import time
import types

import numpy as np
import pairing
import pytest
from inside_model import arms, hooks, markers, observer, own_time, spin
from inside_model.plugin_hooks import PluginHooks
from inside_model.step_log import ROWS, StepLog
from model_servers import Arm, Column, Word

from lightllm_otel.records.control import NAME, REQUEST, ControlPage
from lightllm_otel.records.vocabulary import Level


class Backend:
    """LightLLM's, as far as it is hooked; a fresh class for each test."""

    @classmethod
    def new(cls):
        class ModeBackend:
            model = types.SimpleNamespace()

            def _try_read_new_reqs_normal(self):
                burn(2e-3)

            def _post_handle(self, run_reqs, next_token_ids=(), extra=None):
                if extra == "raise":
                    raise KeyError("the host's own")
                return len(run_reqs)

        class OverlapEventPack:
            def wait_to_forward(self):
                pass

            def notify_forward_and_wait_post_handle(self):
                return "waited"

        return ModeBackend, OverlapEventPack


class Clock:
    """A manual clock of each thread's CPU time, which is all the time that there is."""

    def __init__(self):
        self._spent = collections.defaultdict(int)

    def burn(self, seconds):
        self._spent[threading.get_ident()] += round(1e9 * seconds)

    def now(self):
        return self._spent[threading.get_ident()]


CLOCK = Clock()
burn = CLOCK.burn


@pytest.fixture(autouse=True)
def _manual_clock(monkeypatch):
    monkeypatch.setattr(
        hooks, "time", types.SimpleNamespace(thread_time_ns=CLOCK.now, perf_counter_ns=time.perf_counter_ns)
    )
    monkeypatch.setattr(own_time, "time", types.SimpleNamespace(perf_counter_ns=CLOCK.now))


@pytest.fixture
def host(tmp_path, monkeypatch):
    backend, pack = Backend.new()
    monkeypatch.setenv("LIGHTLLM_OTEL_DIR", str(tmp_path / "otel"))
    recorder = hooks.Recorder(tmp_path)
    recorder.hook_backend(types.SimpleNamespace(ModeBackend=backend))
    recorder.hook_events(types.SimpleNamespace(OverlapEventPack=pack))
    return types.SimpleNamespace(backend=backend(), pack=pack(), folder=tmp_path, recorder=recorder)


def step(host, batch, **given):
    host.pack.wait_to_forward()
    host.backend._try_read_new_reqs_normal()
    assert host.pack.notify_forward_and_wait_post_handle() == "waited"
    return host.backend._post_handle(run_reqs=[None] * batch, **given)


class TestLog:
    def test_rows_are_read_while_they_are_written(self, tmp_path):
        log = StepLog(tmp_path, create=True)
        reader = StepLog(tmp_path)
        for number in range(5):
            log.add(1000 + number, 20, number, 4)
        assert reader.rows(0)[:, Column.AT].tolist() == [1000, 1001, 1002, 1003, 1004]
        assert reader.rows(3)[:, Column.POSITION].tolist() == [3, 4]

    def test_rows_that_were_overwritten_are_not_made_up(self, tmp_path):
        log = StepLog(tmp_path, create=True)
        log.words[Word.STEPS] = ROWS + 10
        with pytest.raises(ValueError, match="only the last"):
            log.rows(0)
        assert len(log.rows(10)) == ROWS


class TestHooks:
    def test_the_host_gets_its_arguments_results_and_exceptions(self, host):
        assert step(host, 3, next_token_ids=[1]) == 3
        assert host.backend._post_handle([None, None], [1, 2]) == 2
        with pytest.raises(KeyError, match="own"):
            step(host, 1, extra="raise")
        assert StepLog(host.folder).rows(0)[:, Column.BATCH].tolist() == [3, 2, 1]

    def test_positions_count_full_batches_in_a_row_and_begin_anew_when_they_are_told_to(self, host):
        step(host, 1)
        words = StepLog(host.folder).words
        words[Word.BATCH] = 2
        for batch in (2, 2, 1, 2, 2, 2):
            step(host, batch)
        words[Word.EPOCH] += 1
        step(host, 2)
        assert StepLog(host.folder).rows(1)[:, Column.POSITION].tolist() == [0, 1, -1, 0, 1, 2, 0]

    def test_settings_take_turns_as_the_schedule_of_the_pairs_has_it(self, host):
        step(host, 1)
        log = StepLog(host.folder)
        block, positions = 4, 16
        schedule = pairing.Schedule(positions, block, 4)
        log.words[Word.FIRST], log.words[Word.SECOND] = int(Arm.OFF), int(Arm.STEPS)
        log.words[Word.BATCH], log.words[Word.BLOCK] = 2, block
        for number in range(4):
            log.words[Word.PASS], first = number, log.words[Word.STEPS]
            log.words[Word.EPOCH] += 1
            for _ in range(positions + 1):
                step(host, 2)
            # The setting of a step is what was asked for before it: one step behind the position at which it changes.
            found = log.rows(first)[1:, Column.ARM]
            expected = [Arm.STEPS if schedule.is_on(number, at) else Arm.OFF for at in range(positions)]
            assert found.tolist() == [int(arm) for arm in expected]

    def test_a_setting_holds_until_another_one_is_wanted_and_minus_one_wants_none(self, host):
        step(host, 1)
        log = StepLog(host.folder)
        assert log.words[Word.NOW] == -1
        log.words[Word.HOLD] = int(Arm.EVERY_STEP)
        step(host, 1)
        assert log.words[Word.NOW] == Arm.EVERY_STEP
        log.words[Word.HOLD] = -1
        step(host, 1)
        assert log.words[Word.NOW] == Arm.EVERY_STEP

    def test_cpu_time_of_a_step_is_the_threads_own_without_its_wait_for_requests(self, host):
        step(host, 1)
        log = StepLog(host.folder)
        log.words[Word.CPU] = 1
        for _ in range(3):
            host.pack.wait_to_forward()
            host.backend._try_read_new_reqs_normal()  # 2 ms that do not count
            burn(4e-3)
            host.pack.notify_forward_and_wait_post_handle()
            host.backend._post_handle(run_reqs=[None])
            burn(1e-3)
        host.pack.wait_to_forward()
        rows = log.rows(1)
        assert rows[:, Column.SERIAL_CPU].tolist() == [4_000_000] * 3
        assert rows[:, Column.REST_CPU].tolist() == [1_000_000] * 3

    def test_threads_that_take_turns_have_their_own_times(self, host):
        step(host, 1)
        log = StepLog(host.folder)
        log.words[Word.CPU] = 1
        turn = threading.Lock()

        def loop(cost, batch):
            for _ in range(3):
                with turn:
                    host.pack.wait_to_forward()
                    burn(cost)
                    host.pack.notify_forward_and_wait_post_handle()
                    host.backend._post_handle(run_reqs=[None] * batch)

        threads = [threading.Thread(target=loop, args=each) for each in ((1e-3, 5), (6e-3, 6))]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        rows = log.rows(1)
        cheap, dear = (rows[rows[:, Column.BATCH] == batch][:, Column.SERIAL_CPU] for batch in (5, 6))
        assert cheap.tolist() == [1_000_000] * 3
        assert dear.tolist() == [6_000_000] * 3

    def test_a_log_that_cannot_be_written_is_given_up_and_the_server_goes_on(self, host, capsys):
        host.folder.joinpath("steps.log").mkdir()
        assert step(host, 2) == 2
        assert step(host, 3) == 3
        assert "Traceback" in capsys.readouterr().err

    def test_a_host_without_infer_threads_is_logged_all_the_same(self, tmp_path):
        class Old:
            model = types.SimpleNamespace()

            def _post_handle(self, run_reqs, *others):
                return others

        recorder = hooks.Recorder(tmp_path)
        recorder.hook_backend(types.SimpleNamespace(ModeBackend=Old))
        assert Old()._post_handle([1, 2], 7) == (7,)
        assert StepLog(tmp_path).rows(0)[0, Column.BATCH] == 2


# The plugin's hooks ----------------------------------------------------------------------------------------------------

NUMBERS = itertools.count()
PLUGIN = """
import functools

def hooked(host):
    @functools.wraps(host)
    def hook(*args, **kwargs):
        return "plugin", host(*args, **kwargs)
    return hook
"""


SLOW_PLUGIN = """
import functools

def hooked(host):
    measured = way(host)
    @functools.wraps(host)
    def hook(*args, **kwargs):
        burn(1e-3)
        return measured(*args, **kwargs)
    return hook

def way(host):
    @functools.wraps(host)
    def method(*args, **kwargs):
        try:
            return host(*args, **kwargs)
        finally:
            burn(1e-3)
    return method
"""


@pytest.fixture
def plugged(monkeypatch):
    """A host module with a class, an instance and a function, some of which a plugin has hooked."""
    namespace, host = {}, f"fakellm{next(NUMBERS)}"  # objects of the test before may live on
    exec(compile(PLUGIN, "/site-packages/fake_otel/hooks.py", "exec"), namespace)
    hooked = namespace["hooked"]
    module = types.ModuleType(f"{host}.model")

    class Model:
        def forward(self, value):
            return value

        def other(self):
            return "host"

        @staticmethod
        def fixed(value):
            return value

    Model.__module__ = module.__name__
    module.Model, module.sample, module.untouched = Model, lambda logits: logits, lambda: 1
    monkeypatch.setitem(sys.modules, module.__name__, module)
    model = Model()
    Model.forward = hooked(Model.forward)
    Model.fixed = staticmethod(hooked(Model.fixed))
    module.sample = hooked(module.sample)
    model.bound = model.forward  # an instance that has copied a hook
    model.somebody = functools.wraps(model.other)(lambda: "somebody else's")
    return types.SimpleNamespace(module=module, model=model, hooks=PluginHooks("fake_otel", host))


class TestPluginHooks:
    def test_hooks_of_the_package_are_found_in_modules_classes_and_instances_and_nothing_else(self, plugged):
        assert sorted(hook.name for hook in plugged.hooks.find()) == ["bound", "fixed", "forward", "sample"]

    def test_they_are_taken_out_and_put_back(self, plugged):
        model, module = plugged.model, plugged.module
        before = [dict(vars(each)) for each in (model, type(model), module)]
        for _ in range(2):
            assert (model.forward(1), model.bound(1), model.fixed(1), module.sample(1)) == (("plugin", 1),) * 4
            plugged.hooks.take_out()
            assert plugged.hooks.out == 4
            assert (model.forward(1), model.bound(1), model.fixed(1), module.sample(1)) == (1,) * 4
            assert model.somebody() == "somebody else's"
            plugged.hooks.put_back()
            assert [dict(vars(each)) for each in (model, type(model), module)] == before

    def test_what_somebody_has_put_there_meanwhile_stays(self, plugged):
        plugged.hooks.take_out()
        plugged.module.sample = mine = lambda logits: "mine"
        plugged.hooks.put_back()
        assert plugged.module.sample is mine

    def test_hooks_that_come_later_are_found_the_next_time(self, plugged):
        plugged.hooks.take_out()
        plugged.hooks.put_back()
        wrapped = type(plugged.model).forward
        type(plugged.model).forward = wrapped.__wrapped__
        plugged.hooks.take_out()
        assert plugged.hooks.out == 3
        plugged.hooks.put_back()
        assert type(plugged.model).forward is wrapped.__wrapped__


class TestOwnTimes:
    def test_a_hook_costs_what_it_takes_without_the_host(self, plugged):
        def slow_host(model, value):
            burn(4e-3)
            return value

        namespace = {"burn": burn}
        exec(compile(SLOW_PLUGIN, "/site-packages/fake_otel/slow.py", "exec"), namespace)
        model = type(plugged.model)
        model.forward = namespace["hooked"](slow_host)
        before = model.forward
        own = own_time.OwnTimes(plugged.hooks)
        own.install()
        assert [plugged.model.forward(value) for value in range(5)] == list(range(5))
        own.remove()
        assert model.forward is before
        found = own.take()["forward"]
        assert found["calls"] == 5
        assert found["median_us"] == found["mean_us"] == 2000  # before and after; the host's 4 ms are not ours
        assert [plugged.model.forward(value) for value in range(2)] == [0, 1]
        assert own.take()["forward"]["calls"] == 5

    def test_a_hook_inside_another_ones_host_is_counted_once(self, plugged):
        namespace = {"burn": burn}
        exec(compile(SLOW_PLUGIN, "/site-packages/fake_otel/slow.py", "exec"), namespace)
        module = plugged.module
        module.sample = namespace["hooked"](lambda value: value)
        type(plugged.model).forward = namespace["hooked"](lambda model, value: module.sample(value))
        own = own_time.OwnTimes(plugged.hooks)
        own.install()
        plugged.model.forward(1)
        own.remove()
        assert [own.take()[name]["median_us"] for name in ("forward", "sample")] == [2000, 2000]

    def test_a_function_that_is_copied_by_name_is_looked_at_in_each_place(self, plugged):
        plugged.module.copied = plugged.module.sample
        own = own_time.OwnTimes(plugged.hooks)
        own.install()
        assert plugged.module.copied(1) == plugged.module.sample(1) == ("plugin", 1)
        own.remove()
        assert own.take()["sample"]["calls"] + own.take().get("copied", {"calls": 0})["calls"] == 2

    def test_an_exception_of_the_host_passes_and_bound_methods_are_named(self, plugged):
        namespace = {}
        exec(compile(PLUGIN, "/site-packages/fake_otel/hooks.py", "exec"), namespace)
        plugged.module.sample = namespace["hooked"](lambda value: 1 / value)
        own = own_time.OwnTimes(plugged.hooks)
        own.install()
        with pytest.raises(ZeroDivisionError):
            plugged.module.sample(0)
        own.remove()
        assert own.take()["sample"]["calls"] == 1
        assert "bound" in own.missed


class Counted(PluginHooks):
    def __init__(self):
        super().__init__()
        self.done = []

    def take_out(self):
        self.done.append("out")

    def put_back(self):
        self.done.append("back")


class TestSwitch:
    @pytest.fixture
    def page(self, tmp_path):
        (tmp_path / "group").mkdir()
        return ControlPage(tmp_path / "group" / NAME)

    def test_each_setting_is_an_order_of_live_control(self, page, tmp_path):
        switch = arms.Switch(tmp_path, Counted())
        for arm, expected in (
            (Arm.OFF, (Level.OFF, 64)), (Arm.STEPS, (Level.STEPS, 64)), (Arm.DEFAULT, (Level.OPERATORS, 64)),
            (Arm.EVERY_STEP, (Level.OPERATORS, 1)), (Arm.UNSAMPLED, (Level.OPERATORS, arms.NEVER)),
        ):  # fmt: skip
            before = page.requested
            switch.to(arm)
            found = page.read(REQUEST)
            assert page.requested == before + 1
            assert (found.level, found.every) == expected

    def test_hooks_are_taken_out_only_when_live_control_has_been_off_for_a_while(self, page, tmp_path):
        counted = Counted()
        switch = arms.Switch(tmp_path, counted)
        switch.to(Arm.ABSENT)
        assert page.read(REQUEST).level is Level.OFF
        for _ in range(arms.LAG):
            switch.step()
        assert counted.done == []
        for _ in range(5):
            switch.step()
        assert counted.done == ["out"]
        switch.to(Arm.DEFAULT)
        assert counted.done == ["out", "back"]

    def test_a_change_of_mind_leaves_the_hooks_in(self, page, tmp_path):
        counted = Counted()
        switch = arms.Switch(tmp_path, counted)
        switch.to(Arm.ABSENT)
        switch.step()
        switch.to(Arm.STEPS)
        for _ in range(3 * arms.LAG):
            switch.step()
        assert counted.done == ["back"]

    def test_hooks_that_cannot_be_taken_out_stay_and_the_steps_go_on(self, page, tmp_path, capsys):
        class Failing(Counted):
            def take_out(self):
                raise RuntimeError("dictionary changed size during iteration")

        failing = Failing()
        switch = arms.Switch(tmp_path, failing)
        switch.to(Arm.ABSENT)
        for _ in range(arms.LAG + 3):
            switch.step()
        assert failing.done == ["back"]
        assert "changed size" in capsys.readouterr().err

    def test_a_stock_process_has_no_page_and_nothing_happens(self, tmp_path):
        arms.Switch(None, Counted()).to(Arm.EVERY_STEP)
        arms.Switch(tmp_path / "nothing", Counted()).to(Arm.EVERY_STEP)
        assert not (tmp_path / "nothing").exists()

    def test_all_of_a_block_that_counts_lies_behind_the_lag(self):
        import served_overhead

        for load in (served_overhead.Load(), served_overhead.TINY):
            # One step until it is asked for, the lag, the step in which hooks go, and two that are in flight.
            assert load.dropped >= arms.LAG + 1
        assert served_overhead.Load().dropped >= arms.LAG + 4


# Markers ---------------------------------------------------------------------------------------------------------------


def model_of(layers=2):
    class Layer:
        def _att_norm(self, x):
            return x + 1

        def _ffn(self, x, scale=1):
            return x * scale

    class Model:
        def __init__(self):
            self.graph = "graphs"
            self.layers_infer = [Layer() for _ in range(layers)]
            self.pre_infer = types.SimpleNamespace(token_forward=lambda x: x)
            self.post_infer = types.SimpleNamespace(token_forward=lambda x: x)

        def forward(self, model_input):
            return self._decode(model_input)

        def _decode(self, model_input):
            x = self.pre_infer.token_forward(1)
            for layer in self.layers_infer:
                x = layer._ffn(layer._att_norm(x), scale=2)
            return self.post_infer.token_forward(x)

    return Model()


def model_input(batch=3):
    return types.SimpleNamespace(batch_size=batch, total_token_num=50, is_prefill=False)


class TestMarkers:
    def test_forwards_are_noted_with_what_they_compute_and_forgotten_when_it_is_over(self):
        model = model_of()
        seen = markers.ForwardMarkers(model)
        seen.install()
        before = time.time_ns()
        assert model.forward(model_input()) == 10
        assert model.forward(model_input=model_input(2)) == 10
        seen.remove()
        model.forward(model_input())
        noted = seen.take()
        assert [(each["batch"], each["context"], each["prefill"]) for each in noted] == [(3, 50, False), (2, 50, False)]
        assert before <= noted[0]["at"] <= noted[1]["at"] <= time.time_ns()
        assert seen.take() == []
        assert "forward" not in vars(model)

    def test_a_forward_is_noted_with_the_entry_of_its_first_operator_and_of_its_sampling(self, monkeypatch):
        sampler = types.ModuleType(f"{markers.SAMPLERS}.chunked")
        host = sampler.sample = lambda logits: logits
        monkeypatch.setitem(sys.modules, sampler.__name__, sampler)
        model = model_of()
        own = dict(vars(model.pre_infer))
        seen = markers.ForwardMarkers(model)
        seen.install()
        for _ in range(2):
            assert sampler.sample(model.forward(model_input())) == 10
        seen.remove()
        assert sampler.sample is host
        assert vars(model.pre_infer) == own
        first, second = seen.take()
        for each in (first, second):
            assert each["at"] <= each["first_operator_at"] <= each["sampling_at"]
        assert first["sampling_at"] <= second["at"]

    def test_calls_of_operators_are_noted_in_order_and_there_are_no_graphs_meanwhile(self, monkeypatch):
        sampler = types.ModuleType(f"{markers.SAMPLERS}.chunked")
        sampler.sample = lambda logits: logits
        monkeypatch.setitem(sys.modules, sampler.__name__, sampler)
        model = model_of(layers=1)
        own = dict(vars(model.layers_infer[0]))
        annotations = markers.Annotations(types.SimpleNamespace(model=model))
        annotations.install()
        assert model.graph is None
        assert sampler.sample(model.forward(model_input())) == 4
        annotations.remove()
        assert model.graph == "graphs"
        assert vars(model.layers_infer[0]) == own
        operators = ["embedding", "attn_norm", "ffn", "lm_head", "sampling"]
        assert annotations.take() == [
            ("forward", ""), *((what, name) for name in operators for what in ("enter", "leave"))
        ]  # fmt: skip

    def test_a_method_that_raises_leaves_its_operator(self):
        model = model_of(layers=1)
        model.layers_infer[0]._ffn = lambda x, scale: 1 / 0
        annotations = markers.Annotations(types.SimpleNamespace(model=model))
        annotations.install()
        with pytest.raises(ZeroDivisionError):
            model.forward(model_input())
        annotations.remove()
        assert annotations.take()[-1] == ("leave", "ffn")

    def test_each_step_is_delayed_by_its_batch_and_neighbours_differ(self):
        assert all(spin.units_of(batch) != spin.units_of(batch + 1) for batch in range(1, 100))
        model = model_of()
        spins = spin.Spins(model)
        spins.install(unit_us=2000.0)
        began = time.perf_counter()
        assert model.forward(model_input(batch=2)) == 10
        assert time.perf_counter() - began >= 3 * 2e-3  # 1 + 2 % 3 units
        spins.remove()
        assert [(each["batch"], each["units"]) for each in spins.take()] == [(2, 3)]
        assert "_decode" not in vars(model)


class TestObserver:
    def test_what_is_asked_is_answered_also_when_it_fails(self, tmp_path):
        seen = observer.Observer(tmp_path, types.SimpleNamespace(model=model_of()))
        seen._answer({"number": 1, "do": "spin", "with": {"on": True, "unit_us": 1.0}})
        assert json.loads((tmp_path / observer.ANSWER).read_text()) == {"number": 1, "result": {}}
        seen._backend.model.forward(model_input())
        seen._answer({"number": 2, "do": "spin", "with": {"on": False}})
        answer = json.loads((tmp_path / observer.ANSWER).read_text())
        assert answer["result"]["forwards"][0]["batch"] == 3
        seen._answer({"number": 3, "do": "nonsense", "with": {}})
        assert "nonsense" in json.loads((tmp_path / observer.ANSWER).read_text())["problem"]

    def test_an_ask_is_answered_once(self, tmp_path, monkeypatch):
        monkeypatch.setattr(observer, "POLL_SECONDS", 0.01)
        seen = observer.Observer(tmp_path, types.SimpleNamespace(model=model_of()))
        asked = []
        monkeypatch.setattr(seen, "_answer", lambda ask: asked.append(ask["number"]))
        (tmp_path / observer.ASK).write_text(json.dumps({"number": 7, "do": "memory", "with": {}}))
        seen.start()
        deadline = time.monotonic() + 10
        while not asked and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.1)
        assert asked == [7]
        monkeypatch.setattr(observer, "POLL_SECONDS", 3600)


def test_the_steps_of_a_schedule_are_those_of_the_pairs():
    """The rule in hooks.py and the one in pairing.py are one rule."""
    schedule = pairing.Schedule(16, 4, 4)
    for number in range(4):
        for position in range(16):
            second = (position // 4 % 2 == 1) != (number % 4 in (1, 2))
            assert second is schedule.is_on(number, position)
    assert np.array([schedule.is_on(0, at) for at in range(16)]).sum() == 8
