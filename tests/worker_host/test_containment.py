"""Containment: the host's results, exceptions and calls are the same with, without, and with a broken plugin."""

import functools

import fake_host
import fakes
import pytest
from fake_host import InferReq, ModelInput, answer

from lightllm_otel.contracts.patch_set import PatchSet
from lightllm_otel.guard import Guard
from lightllm_otel.records.vocabulary import Feature, Operator, Stage
from lightllm_otel.worker.host import operators, slots

ANSWER = answer(ModelInput(1, 8, False))


def request(rpc, requests=None):
    rpc.waiting.append((ModelInput(1, 8, False), requests or [InferReq(8)]))
    return rpc.decode()


def test_the_result_is_the_hosts_own(serve):
    _, _, rpc = serve(tp=2)
    assert request(rpc) == ANSWER


def test_the_hosts_exception_passes_untouched_and_the_step_is_forgotten(serve):
    _, session, rpc = serve()
    rpc.model.broken = True
    with pytest.raises(RuntimeError, match="the host's own error"):
        request(rpc)
    rpc.model.broken = False
    before = session.forwards.completed
    request(rpc)
    assert len(session.kept.steps) == 1
    assert session.kept.steps[0][0]["number"] == before
    assert session.guard.errors == [0] * len(Stage)


def test_a_repeated_forward_has_the_number_of_the_one_that_raised(serve):
    _, session, rpc = serve()
    number = session.forwards.completed
    rpc.model.broken = True
    with pytest.raises(RuntimeError):
        request(rpc)
    assert session.forwards.completed == number


def test_a_broken_clock_ends_the_measuring_and_nothing_else(serve, caplog):
    _, session, rpc = serve(strict=False)
    session.clock.fails = True
    assert [request(rpc) for _ in range(3)] == [ANSWER] * 3
    assert session.timer.failed
    assert session.guard.errors[Stage.MEASURE.code] == 1
    assert session.kept.steps == []


def test_after_a_failure_no_step_looks_stuck(serve, now):
    _, session, rpc = serve(strict=False)
    session.clock.frontier = now[0]
    request(rpc)
    session.clock.fails = True
    request(rpc)
    assert session.timer.failed
    assert session.kept.in_flight is None
    assert session.kept.oldest_unread == 0.0
    assert sum(session.kept.dropped) >= 1


def test_a_clock_that_breaks_in_the_middle_of_a_step_is_harmless(serve):
    _, session, rpc = serve(strict=False)
    layer = rpc.model.layers_infer[0]
    ffn = layer._ffn

    def breaks(*args):
        session.clock.fails = True
        return ffn(*args)

    layer._ffn = breaks
    assert request(rpc) == ANSWER
    assert session.timer.failed
    layer._ffn = ffn


def test_a_step_with_more_boundaries_than_foreseen_is_timed_as_a_step(serve):
    _, session, rpc = serve(boundaries=8)
    request(rpc)
    rpc.decode()
    step, intervals = session.kept.steps[-1]
    assert step["seconds"] > 0
    assert len(intervals) == 0
    assert sum(session.timer.pending.dropped) == 1


def test_steps_that_are_never_read_are_bounded_and_counted(serve, now):
    _, session, rpc = serve()
    session.clock.frontier = now[0]
    for _ in range(70):
        request(rpc)
    assert len(session.timer.pending.steps) == 64
    assert sum(session.timer.pending.dropped) >= 6
    session.clock.frontier = float("inf")
    rpc.decode()
    assert len(session.kept.steps) == 64


def test_undo_leaves_no_copy_of_an_inherited_method():
    class Base:
        def call(self):
            return 1

    class Derived(Base):
        pass

    patch_set = PatchSet()
    patch_set.replace(Derived, "call", lambda host: functools.partial(host, None))
    patch_set.undo()
    assert "call" not in vars(Derived)


def test_undo_puts_instance_partials_back(serve):
    _host, session, rpc = serve()
    layer = rpc.model.layers_infer[0]
    wrapped = layer._att_norm
    session.operator_patches.undo()
    assert isinstance(layer._att_norm, functools.partial)
    assert layer._att_norm is not wrapped
    assert "_get_qkv" not in vars(layer)


def test_static_methods_are_refused():
    class Host:
        @staticmethod
        def call():
            return 1

    with pytest.raises(TypeError):
        PatchSet().replace(Host, "call", lambda host: host)


@pytest.mark.parametrize(
    "operator",
    sorted({slot.operator for slot in [*slots.PRE_SLOTS, *slots.LAYER_SLOTS, *slots.POST_SLOTS]} - {Operator.OTHER}),
)
def test_every_slot_is_found_in_a_model_of_the_template(serve, operator):
    _, session, _ = serve()
    assert session.slots[operator.value] == operators.INSTALLED


def test_work_that_nothing_claims_is_no_operator_that_could_be_missing(serve):
    _, session, _ = serve()
    assert Operator.OTHER.value not in session.slots


def test_a_missing_slot_is_reported_and_the_others_are_timed(serve, now):
    class NoFfn:
        pass

    _host, session, rpc = serve()
    model = rpc.model
    model.layers_infer = [NoFfn()]
    found = operators.install(model, session.timer, session.patch_set, Guard())
    assert found["ffn"] == operators.MISSING
    assert found["embedding"] == operators.INSTALLED


def test_a_forward_of_an_unknown_signature_is_left_alone_and_named(serve, now):
    host = fake_host.make(now)

    class TpPartBaseModel(host.basemodel.TpPartBaseModel):
        def forward(self, work):
            return super().forward(work)

    stock = TpPartBaseModel.forward
    host.basemodel.TpPartBaseModel = TpPartBaseModel
    session = fakes.FakeSession(host).patch()
    assert TpPartBaseModel.forward is stock
    (sentence,) = session.fits.lost()[Feature.STEPS]
    assert sentence == "no step is timed"
    assert "its parameters are (self, work)" in session.fits.facts()["rows"]["forward"]
    session.undo()


def test_an_error_is_logged_once_and_counted_every_time(caplog):
    guard = Guard()
    for _ in range(3):
        with guard(Stage.RING):
            raise OSError("no space")
    assert guard.errors[Stage.RING.code] == 3
    assert len([record for record in caplog.records if "ring disabled" in record.message]) == 1


def test_ctrl_c_belongs_to_the_host():
    with pytest.raises(KeyboardInterrupt), Guard()(Stage.MEASURE):
        raise KeyboardInterrupt
