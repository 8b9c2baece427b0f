"""Tests of live control: all ranks follow an order from the same forward on, however far apart they are."""

import pytest

from lightllm_otel.records.control import AHEAD, ControlPage, Listener, Order
from lightllm_otel.records.vocabulary import Level, Phase
from lightllm_otel.worker.forwards import Forwards
from lightllm_otel.worker.sampling import Sampling

RUN_AHEAD = 2  # forwards that a host launches before the first of them is done


@pytest.fixture
def page(tmp_path):
    page = ControlPage(tmp_path / "control")
    yield page
    page.close()


class Rank:
    def __init__(self, page, every, leader):
        self.forwards = Forwards(Level.OPERATORS, Sampling(every))
        self.listener = Listener(page, self.place if leader else None)
        self.choices = []
        self.changed_at = None

    def place(self, number, request):
        return self.forwards.quiet(number + AHEAD, request.level, Sampling(request.every), 2)

    def enter(self):
        order = self.listener.due(self.forwards.completed)
        if order is not None:
            self.forwards.follow(order.level, Sampling(order.every))
            self.changed_at = self.forwards.completed
        self.choices.append(self.forwards.due(Phase.DECODE, 1))
        self.forwards.complete()


@pytest.mark.parametrize("lag", range(-RUN_AHEAD, RUN_AHEAD + 1))
@pytest.mark.parametrize(
    ("before", "after", "level"),
    [
        (1, 64, Level.OPERATORS),
        (64, 1, Level.OPERATORS),
        (4, 4, Level.OFF),
        (1, 1, Level.STEPS),
        (3, 2, Level.OPERATORS),
    ],
)
def test_ranks_change_at_the_same_forward_whenever_the_request_comes(page, lag, before, after, level):
    """Run two ranks. ``lag``: the number of forwards that the second rank is behind the first one (or ahead, if negative)."""
    for offset in range(40):
        first, second = Rank(page, before, leader=True), Rank(page, before, leader=False)
        for number in range(400):
            if number == offset:
                page.request(level, after)
            if number < 400 - RUN_AHEAD:
                first.enter()
            if 0 <= number - lag < 400 - RUN_AHEAD and len(second.choices) < 400 - RUN_AHEAD:
                second.enter()
        while len(second.choices) < len(first.choices):
            second.enter()
        count = min(len(first.choices), len(second.choices))
        assert first.choices[:count] == second.choices[:count]
        assert first.changed_at == second.changed_at is not None


@pytest.mark.parametrize("lag", range(-RUN_AHEAD, RUN_AHEAD + 1))
def test_a_second_request_while_the_first_order_waits_keeps_the_ranks_together(page, lag):
    for second_request in range(1, 30):
        first, second = Rank(page, 1, leader=True), Rank(page, 1, leader=False)
        for number in range(200):
            if number == 5:
                page.request(Level.OPERATORS, 64)
            if number == 5 + second_request:
                page.request(Level.OPERATORS, 3)
            first.enter()
            if number - lag >= 0:
                second.enter()
        count = min(len(first.choices), len(second.choices))
        assert first.choices[:count] == second.choices[:count], second_request
        assert first.forwards.sampling == Sampling(3)


def test_orders_reach_beyond_two_to_the_32_forwards(page):
    listener = Listener(page, lambda number, request: number + 8)
    page.request(Level.OFF, 1)
    many = (1 << 32) + 5
    assert listener.due(many) is None
    assert listener.due(many + 8) == Order(1, Level.OFF, 1, many + 8)


def test_a_change_lies_where_no_step_is_sampled_then_or_now():
    forwards = Forwards(Level.OPERATORS, Sampling(64))
    new = Sampling(16)
    for first in range(0, 3000, 37):
        at = forwards.quiet(first, Level.OPERATORS, new, margin=2)
        assert first <= at < first + 256
        around = range(at - 2, at + 3)
        assert not any(rule.due(number, Phase.DECODE, 0) for rule in (Sampling(64), new) for number in around)


def test_where_every_step_is_sampled_the_change_comes_at_once():
    assert Forwards(Level.OPERATORS, Sampling(1)).quiet(77, Level.OFF, Sampling(1), margin=2) == 77


def test_what_was_asked_of_an_earlier_server_is_over(page):
    page.request(Level.OFF, 1)
    listener = Listener(page, lambda number, request: number)
    assert listener.due(0) is None
    page.request(Level.STEPS, 9)
    assert listener.due(5) == Order(2, Level.STEPS, 9, 5)
    assert listener.due(6) is None


def test_only_the_first_rank_makes_orders(page):
    follower = Listener(page, None)
    page.request(Level.OFF, 1)
    assert follower.due(10) is None
    page.order(Order(1, Level.OFF, 1, at=12))
    assert [follower.due(number) is not None for number in (10, 11, 12, 13)] == [False, False, True, False]


def test_the_page_is_its_owners_alone(tmp_path):
    ControlPage(tmp_path / "control").close()
    assert (tmp_path / "control").stat().st_mode & 0o777 == 0o600
