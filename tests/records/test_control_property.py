"""Requests at any moment, also in the middle of a forward's entry: all ranks follow the same orders from the same forwards on."""

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightllm_otel.records.control import AHEAD, ControlPage, Listener
from lightllm_otel.records.vocabulary import Level, Phase
from lightllm_otel.worker.forwards import Forwards
from lightllm_otel.worker.sampling import Sampling

FEW = settings(
    max_examples=30, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck),
)  # fmt: skip
RANKS = 3
RUN_AHEAD = 2  # forwards that a host launches before the first of them is done
SETTLED = 300  # forwards within which a change of the rule finds a place between samples
RULES = st.tuples(st.sampled_from(Level), st.sampled_from((1, 2, 3, 16, 64)))
ACTIONS = st.one_of(
    st.tuples(st.just("enter"), st.integers(0, RANKS - 1), st.integers(1, 12)),
    st.tuples(st.just("enter"), st.integers(0, RANKS - 1), st.integers(1, 12)),
    st.tuples(st.just("request"), RULES, st.lists(st.integers(0, RANKS - 1), max_size=3)),
)


class PausedWords:
    """The page's words, with a call before and after each change: other processes may read at any moment."""

    def __init__(self, words, meanwhile):
        self._words, self._meanwhile = words, meanwhile

    def __getitem__(self, at):
        return self._words[at]

    def __setitem__(self, at, word):
        self._meanwhile()
        self._words[at] = word
        self._meanwhile()


class Rank:
    def __init__(self, page, every, leader):
        self.forwards = Forwards(Level.OPERATORS, Sampling(every))
        self.listener = Listener(page, self.place if leader else None)
        self.choices, self.followed = [], []

    def place(self, number, request):
        return self.forwards.quiet(number + AHEAD, request.level, Sampling(request.every), 2)

    def enter(self):
        order = self.listener.due(self.forwards.completed)
        if order is not None:
            self.forwards.follow(order.level, Sampling(order.every))
            self.followed.append((self.forwards.completed, order))
        self.choices.append(self.forwards.due(Phase.DECODE, 1))
        self.forwards.complete()


class Group:
    def __init__(self, page, every):
        self.page = page
        self.ranks = [Rank(page, every, leader=number == 0) for number in range(RANKS)]
        self.asked = None

    def enter(self, rank, times):
        """As far as the ranks can be apart: what one launches waits for the others' forwards."""
        for _ in range(times):
            slowest = min(len(each.choices) for each in self.ranks)
            if len(self.ranks[rank].choices) - slowest < RUN_AHEAD:
                self.ranks[rank].enter()

    def request(self, rule, meanwhile):
        """``meanwhile``: ranks that enter a forward while the request is being written."""
        words, entering = self.page.words, list(meanwhile)
        self.page.words = PausedWords(words, lambda: entering and self.enter(entering.pop(), 1))
        try:
            self.page.request(*rule)
        finally:
            self.page.words = words
        self.asked = rule

    def check(self):
        shortest = min(len(rank.choices) for rank in self.ranks)
        assert len({tuple(rank.choices[:shortest]) for rank in self.ranks}) == 1
        for rank in self.ranks[1:]:
            common = min(len(rank.followed), len(self.ranks[0].followed))
            assert rank.followed[:common] == self.ranks[0].followed[:common]


@FEW
@given(actions=st.lists(ACTIONS, max_size=30), every=st.sampled_from((1, 4, 64)))
def test_all_ranks_follow_any_requests_from_the_same_forwards_on(actions, every):
    with tempfile.TemporaryDirectory() as folder:
        page = ControlPage(Path(folder) / "control")
        group = Group(page, every)
        for action, *arguments in actions:
            getattr(group, action)(*arguments)
            group.check()
        for _ in range(2 * SETTLED if group.asked else 0):  # an order that waits, and one after it
            for number in range(RANKS):
                group.enter(number, 1)
        group.check()
        if group.asked:
            level, sample_every = group.asked
            for rank in group.ranks:
                assert (rank.forwards.level, rank.forwards.sampling) == (level, Sampling(sample_every))
        page.close()
