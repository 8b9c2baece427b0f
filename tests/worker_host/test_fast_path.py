"""Fast path of decode steps that are not sampled: their records in the ring equal those of the long path."""

import pytest
from fake_host import InferReq, ModelInput
from fakes import FakeSession

from lightllm_otel.records.control import ControlPage, Listener
from lightllm_otel.records.vocabulary import Level, Mode, Phase

NEVER = 10**9  # one decode step in so many is sampled


def decode(rpc, batch=1):
    rpc.waiting.append((ModelInput(batch, 8 * batch, False), [InferReq(8)] * batch))
    return rpc.decode()


def taken(session):
    """Count the steps that take the long path."""
    long_way = []
    enter = session.timer.enter
    session.timer.enter = lambda work, number, due: (long_way.append(number), enter(work, number, due))[1]
    return long_way


def test_only_the_first_unsampled_decode_step_goes_the_long_way(serve):
    _, session, rpc = serve(every=NEVER, kvargs="graphs")
    long_way = taken(session)
    for batch in (3, 1, 2, 3):
        decode(rpc, batch)
    rpc.decode()
    assert long_way == [0]
    steps = [step for step, _ in session.kept.steps]
    assert [int(step["number"]) for step in steps] == [0, 1, 2, 3]
    assert [(int(step["batch"]), int(step["padded"])) for step in steps] == [(3, 4), (1, 1), (2, 2), (3, 4)]
    assert {Mode.of(int(step["mode"])) for step in steps} == {Mode.GRAPH}
    assert {Phase.of(int(step["phase"])) for step in steps} == {Phase.DECODE}


def test_a_prefill_and_a_sampled_step_go_the_long_way(serve):
    _, session, rpc = serve(every=4)
    long_way = taken(session)
    for _ in range(40):
        decode(rpc)
    due = [number for number in range(40) if session.forwards.sampling.due(number, Phase.DECODE, 0)]
    assert set(due) <= set(long_way)
    assert len(long_way) < 20
    before = len(long_way)
    rpc.waiting.append((ModelInput(1, 8, True), [InferReq(8)]))
    rpc.decode()
    assert len(long_way) == before + 1


def test_an_eager_step_after_a_draft_models_graph_stays_eager(serve):
    host, session, rpc = serve(every=NEVER)
    draft = host.basemodel.TpPartBaseModel("graphs")
    for _ in range(3):
        draft.forward(ModelInput(2, 8, False))
        decode(rpc)
    rpc.decode()
    assert [Mode.of(int(step["mode"])) for step, _ in session.kept.steps] == [Mode.EAGER] * 3


def test_a_forward_that_raises_leaves_nothing_behind(serve):
    _, session, rpc = serve(every=NEVER, kvargs="graphs")
    decode(rpc)
    for _ in range(200):
        rpc.model.broken = True
        with pytest.raises(RuntimeError, match="host's own"):
            rpc.model.forward(ModelInput(1, 8, False))
        rpc.model.broken = False
        decode(rpc)
    rpc.decode()
    assert [int(step["number"]) for step, _ in session.kept.steps] == list(range(201))
    assert session.timer._ends._made < 20


def test_an_order_is_heard_at_the_next_forward(serve, tmp_path):
    _, session, rpc = serve(every=NEVER)
    page = ControlPage(tmp_path / "control")
    session.listener = Listener(page, lambda number, request: number)
    heard = []
    session.listen = lambda: heard.append(session.listener.due(session.forwards.completed))
    for _ in range(3):
        decode(rpc)
    page.request(Level.STEPS, 8)
    del heard[:]
    for _ in range(3):
        decode(rpc)
    session.listener = Listener(None, None)
    page.close()
    assert [order.level for order in heard if order is not None] == [Level.STEPS]
    assert heard[0] is not None
    assert len(heard) < 3  # and then nobody asks any more


class Raced(list):
    """List that is always empty when it is popped, as if another thread had been faster."""

    def pop(self, *at):
        super().pop(*at)
        raise IndexError


def test_where_two_threads_want_it_one_takes_the_long_way(serve, monkeypatch):
    made = FakeSession.__init__

    def with_races(self, *args, **kwargs):
        made(self, *args, **kwargs)
        self.fast_path.close = self.fast_path.ready.clear
        self.fast_path.ready = Raced()

    monkeypatch.setattr(FakeSession, "__init__", with_races)
    _, session, rpc = serve(every=NEVER)
    long_way = taken(session)
    session.fast_path.close = lambda: None
    for _ in range(3):
        decode(rpc)
    rpc.decode()
    assert long_way == [0, 1, 2]
    assert [int(step["number"]) for step, _ in session.kept.steps] == [0, 1, 2]


def test_while_control_says_off_a_step_only_counts(serve):
    host, session, rpc = serve(every=NEVER)
    decode(rpc)
    session.fast_path.close()
    session.timer = None
    before = len(host.gpu.replayed), session.housekept
    for _ in range(5):
        decode(rpc)
    assert session.forwards.completed == 6
    assert session.housekept - before[1] >= 5
    assert session.fast_path.ready == [None]
