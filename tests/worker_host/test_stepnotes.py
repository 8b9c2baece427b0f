"""Step notes: they are written after the launch, and only for steps that become spans."""

import pytest
from fake_host import COST, InferReq, ModelInput

from lightllm_otel.records.vocabulary import Phase, Stage
from lightllm_otel.worker.host.step_notes import StepNotes


class Kept(list):
    write = list.append


class NewReq(InferReq):
    """Request as since July 2025: it has the length of the answer so far."""

    def __init__(self, req_id, length=1, cur_kv_len=0, answered=1):
        super().__init__(req_id, length, cur_kv_len)
        self.cur_output_len = answered


def run(rpc, *steps):
    for step in steps:
        rpc.waiting.append(step)
        rpc.decode()


def decode(*requests):
    return ModelInput(len(requests), 8, False), list(requests)


def prefill(*requests):
    return ModelInput(len(requests), 64, True, tokens=64), list(requests)


@pytest.fixture
def noting(serve):
    def start(**options):
        host, session, rpc = serve(**options)
        kept = Kept()
        session.notes = StepNotes(kept)
        return host, session, rpc, kept

    return start


def test_every_prefill_is_noted_with_what_was_cached_and_what_is_new(noting):
    host, _, rpc, kept = noting(every=10**9)
    began = host.now[0]
    run(rpc, prefill(NewReq(8, length=100, cur_kv_len=36, answered=0), NewReq(16, length=20, answered=0)))
    (note,) = kept
    assert (note["k"], note["n"], note["p"]) == ("s", 0, Phase.PREFILL.code)
    assert note["r"] == [[8, 36, 64], [16, 0, 20]]
    assert note["w"] == 1e9 + began


def test_a_sampled_decode_step_is_noted_and_another_is_not(noting):
    _, _, rpc, kept = noting(every=1)
    run(rpc, decode(NewReq(8), NewReq(16)))
    assert [note["r"] for note in kept] == [[[8], [16]]]
    _, _, rpc, kept = noting(every=10**9)
    run(rpc, decode(NewReq(8), NewReq(16)))
    assert kept == []


def test_a_request_that_begins_with_a_decode_step_is_noted_alone(noting):
    """All tokens of its prompt except one were cached."""
    _, _, rpc, kept = noting(every=10**9)
    run(rpc, decode(NewReq(8), NewReq(16, cur_kv_len=10, answered=0), NewReq(24, cur_kv_len=30, answered=0)))
    assert [note["r"] for note in kept] == [[[24, 30, 1], [16, 10, 1]]]


def test_health_checks_are_not_noted(noting):
    _, _, rpc, kept = noting(every=1)
    run(rpc, prefill(NewReq(-8, length=5)), decode(NewReq(-8)), decode(NewReq(-8), NewReq(16)))
    assert [note["r"] for note in kept] == [[[16]]]


def test_answers_to_one_prompt_are_one_request(noting):
    _, _, rpc, kept = noting(every=1)
    first, second = NewReq(8), NewReq(9)
    first.group_req_id = second.group_req_id = 8
    run(rpc, decode(first, second))
    assert [note["r"] for note in kept] == [[[8], [8]]]


def test_groups_of_requests_are_noted_without_their_tokens(noting):
    """Beam search of 0.0.1 samples for groups."""
    group = type("InferReqGroup", (), {"group_req_id": 8, "r_id": 8})()
    _, session, rpc, kept = noting(every=1)
    run(rpc, (ModelInput(1, 64, True, tokens=64), [group]), (ModelInput(1, 8, False), [group]))
    assert [note["r"] for note in kept] == [[[8]], [[8]]]
    assert sum(session.guard.errors) == 0


def test_a_step_is_noted_when_its_work_is_launched(noting):
    host, session, rpc, _ = noting(every=1)
    seen = []
    session.notes = StepNotes(type("At", (), {"write": lambda self, note: seen.append(host.now[0])})())
    began = host.now[0]
    run(rpc, decode(NewReq(8)))
    assert seen == [host.now[0]]
    assert host.now[0] - began > COST["sample"]


def test_a_failure_ends_the_notes_and_nothing_else(noting):
    _, session, rpc, _ = noting(every=1, strict=False)
    session.notes = StepNotes(type("Broken", (), {"write": lambda self, note: 1 / 0})())
    run(rpc, decode(NewReq(8)), decode(NewReq(8)))
    assert session.notes is None
    assert session.guard.errors[Stage.RING.code] == 1
    assert session.guard.errors[Stage.MEASURE.code] == 0
    assert len(session.kept.steps) == 2
