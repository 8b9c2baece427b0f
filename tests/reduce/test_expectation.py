"""Slowness that load cannot fake: on operators whose time depends on the load as on a GPU, with noise."""

import json

import numpy as np
import pytest
import records

from lightllm_otel.records import layout
from lightllm_otel.records.vocabulary import Mode, Operator, Phase
from lightllm_otel.reduce.expectation import (
    MOST_PLANES,
    SAMPLES,
    Expectation,
    StepLoad,
    described,
    robust_fit,
    understood,
)

DECODE, PREFILL = Phase.DECODE.code, Phase.PREFILL.code
ATTENTION, FFN = Operator.ATTENTION.code, Operator.FFN.code
TOLERANCE = 0.03


def seconds_of(operator, phase, batch, tokens, context):
    """A 7B model's on a large GPU, roughly: weights are read whatever the batch, the cache by what is attended to, tiles of
    64 rows fill up, and flash decoding splits long contexts.
    """
    if operator is Operator.ATTENTION and phase is Phase.DECODE:
        return 32 * (6e-6 + 3.1e-9 * batch * context * (1 + 0.15 * np.exp(-context / 700)))
    if operator is Operator.ATTENTION:
        return 32 * (20e-6 + 2e-13 * tokens * tokens / batch * 4096)
    rows = batch if phase is Phase.DECODE else tokens
    return 32 * np.maximum(107e-6 * (1 + 0.0013 * rows), 2.7e-10 * 4096 * rows)


class Server:
    """Sampled steps at the load that is asked for. ``slower``: by operator."""

    def __init__(self, ranks=1, seed=0):
        self.expectation, self.ranks = Expectation(), ranks
        self.expectation.begin({}, learns=True, ranks=ranks)
        self.random = np.random.default_rng(seed)
        self.number = 0

    def run(self, count, batch=(1, 64), context=(100, 4000), phase=Phase.DECODE, slower=(), flags=0, rank=None):
        """``count`` steps within these ranges of load; each request's prompt has ``context`` tokens in a prefill."""
        slower = dict(slower)
        for _ in range(count):
            size = int(np.exp(self.random.uniform(*np.log([batch[0], batch[1] + 0.999]))))
            each = int(np.exp(self.random.uniform(*np.log(context))))
            self.step(phase, size, each, slower, flags, rank)
        return self

    def step(self, phase, batch, each, slower, flags, rank):
        tokens = batch if phase is Phase.DECODE else batch * each
        calls = [
            (operator, seconds_of(operator, phase, batch, tokens, each) * slower.get(operator, 1.0)
             * self.random.normal(1.0, 0.01), flags)
            for operator in (Operator.ATTENTION, Operator.FFN)
        ]  # fmt: skip
        for number in range(self.ranks) if rank is None else [rank]:
            step = records.step(
                phase, Mode.GRAPH, operators=calls, number=self.number, batch=batch, padded=batch, tokens=tokens,
                context=batch * each,
            )  # fmt: skip
            self.expectation.add(number, records.batch(step))
        self.number += 1

    def forget(self):
        self.expectation.compared.clear()
        self.expectation.expected.clear()
        return self

    def slowdown(self, operator, phase=Phase.DECODE):
        key = (operator.code, phase.code)
        return self.expectation.compared[key] / self.expectation.expected[key]


@pytest.fixture(scope="module")
def taught():
    return Server().run(20_000)


@pytest.fixture
def server(taught):
    """Has learned what operators take over the whole range of loads."""
    again = Server(seed=1)
    planes = {bucket: list(planes) for bucket, planes in taught.expectation.planes.items()}
    again.expectation.begin(planes, learns=True, ranks=1)
    return again


def shares(server):
    return {operator.value: server.slowdown(operator) for operator in (Operator.ATTENTION, Operator.FFN)}


def test_a_change_of_load_moves_it_by_less_than_three_percent(server):
    for batch, context in (
        ((1, 1), (100, 120)),
        ((64, 64), (3800, 4000)),
        ((1, 64), (100, 4000)),
        ((20, 24), (900, 1100)),
    ):
        server.forget().run(400, batch, context)
        assert all(abs(share - 1) < TOLERANCE for share in shares(server).values()), (batch, context, shares(server))


@pytest.mark.parametrize(("batch", "context"), [((1, 64), (100, 4000)), ((1, 2), (100, 200)), ((60, 64), (2000, 4000))])
def test_an_operator_that_is_five_percent_slower_shows_as_five_percent(server, batch, context):
    server.run(600, batch, context, slower={Operator.FFN: 1.05})
    assert server.slowdown(Operator.FFN) == pytest.approx(1.05, abs=0.01)
    assert server.slowdown(Operator.ATTENTION) == pytest.approx(1.0, abs=0.01)


def test_one_percent_a_day_stays_visible(server):
    for day in range(30):
        server.forget().run(200, slower={Operator.FFN: 1.01**day})
        assert server.slowdown(Operator.FFN) == pytest.approx(1.01**day, abs=0.015)
    assert server.slowdown(Operator.FFN) > 1.3


def test_prefill_is_compared_by_its_tokens_and_what_they_attend_to():
    server, loads = Server(), (((1, 1), (128, 250)), ((8, 8), (1100, 2000)))
    for load in loads:
        server.run(2_000, *load, phase=Phase.PREFILL)
    for load in loads:
        server.forget().run(400, *load, phase=Phase.PREFILL, slower={Operator.ATTENTION: 1.05})
        assert server.slowdown(Operator.ATTENTION, Phase.PREFILL) == pytest.approx(1.05, abs=0.02)
        assert server.slowdown(Operator.FFN, Phase.PREFILL) == pytest.approx(1.0, abs=0.02)


def test_nothing_is_compared_before_it_is_learned_and_what_taught_is_not_compared():
    server = Server().run(SAMPLES, (8, 8), (1000, 1010))
    assert not server.expectation.compared
    server.run(1, (8, 8), (1003, 1005))
    assert set(server.expectation.compared) == {(ATTENTION, DECODE), (FFN, DECODE)}


def test_a_load_between_which_nothing_was_seen_is_learned_apart_and_not_guessed_at():
    server = Server().run(SAMPLES, (8, 8), (1030, 1040))
    server.run(SAMPLES - 1, (8, 8), (1900, 1910))  # the same bucket, far from what was seen
    assert not server.expectation.compared
    server.run(2, (8, 8), (1903, 1907))
    assert len(next(iter(server.expectation.planes.values()))) == 2
    assert server.expectation.compared


def test_planes_of_a_bucket_are_bounded():
    server = Server()
    for each in range(1024, 2048, 50):
        server.run(SAMPLES, (8, 8), (each, each + 1))
    assert {len(planes) for planes in server.expectation.planes.values()} == {MOST_PLANES}
    assert not server.expectation._learning


def test_a_frozen_expectation_is_never_updated(server):
    before = json.dumps(described({k: v[:1] for k, v in server.expectation.planes.items()}))
    server.run(500, slower={Operator.FFN: 2.0})
    assert json.dumps(described({k: v[:1] for k, v in server.expectation.planes.items()})) == before


def test_ranks_take_turns_in_teaching_and_all_are_compared():
    server = Server(ranks=2).run(SAMPLES, (8, 8), (1000, 1010))
    assert len(server.expectation.planes) == 1
    server.run(10, (8, 8), (1003, 1006), slower={Operator.FFN: 1.2}, rank=1)
    assert server.slowdown(Operator.FFN) == pytest.approx(1.2, abs=0.02)


def test_an_operator_that_waited_for_the_host_is_neither_learned_nor_compared():
    server = Server().run(2 * SAMPLES, (8, 8), (1000, 1010), flags=layout.STARVED)
    assert not server.expectation.compared
    assert all(np.isnan(plane.factors).all() for planes in server.expectation.planes.values() for plane in planes)


def test_steps_that_something_interrupted_do_not_teach_much():
    random = np.random.default_rng(0)
    load = np.linspace(1.0, 2.0, SAMPLES)
    seconds = 3.0 + 2.0 * load + random.normal(0, 0.01, SAMPLES)
    seconds[::13] *= 5
    factors = robust_fit(np.stack([np.ones(SAMPLES), load, load * 7], axis=1), seconds)
    assert factors[0] + (factors[1] + 7 * factors[2]) * 1.5 == pytest.approx(6.0, rel=0.01)


def test_what_was_learned_survives_as_plain_values(taught):
    again = understood(json.loads(json.dumps(described(taught.expectation.planes))))
    assert again.keys() == taught.expectation.planes.keys()
    load = StepLoad.of(np.frombuffer(records.step(padded=9, batch=9, context=9000)[0], layout.STEP), DECODE)
    for bucket, planes in again.items():
        for plane, own in zip(planes, taught.expectation.planes[bucket]):
            np.testing.assert_array_equal(plane.seconds(load), own.seconds(load))
            assert (plane.reach == own.reach).all()
