"""Whatever ranks deliver, in whatever order and with whatever losses: only whole steps are matched, the rest is counted."""

import numpy as np
import records
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightllm_otel.records.vocabulary import Unmatched
from lightllm_otel.reduce.matching import Matching

FEW = settings(
    max_examples=150, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck),
)  # fmt: skip
STEPS = 12
KINDS = ("lost", "not sampled", "other batch", "other calls", "as the others", "as the others", "as the others")


def made(number, life=0, batch=1, layers=1):
    """A step with ``2 * layers`` collectives, whose seconds say to which life of the server it belongs."""
    intervals = records.collectives(np.full((layers, 2), 1.0 + life))
    return records.with_collectives(number, intervals, batch=batch, wall_time=1000.0 * life + number + 1.0)


def delivered(matching, rank, *steps):
    matching.add(rank, records.batch(*steps))


def of_kind(kind, number):
    if kind == "not sampled":
        return records.step(number=number, wall_time=number + 1.0)
    return made(number, batch=2 if kind == "other batch" else 1, layers=2 if kind == "other calls" else 1)


@st.composite
def deliveries(draw):
    """What each rank's ring holds, and in which order the parts of the rings are read: (rank, how many steps; settle)."""
    ranks = draw(st.integers(1, 4))
    rings = [[draw(st.sampled_from(KINDS)) for _ in range(STEPS)] for _ in range(ranks)]
    reads = draw(st.lists(st.tuples(st.integers(0, ranks - 1), st.integers(1, 5), st.booleans()), max_size=30))
    return rings, [*reads, *((rank, STEPS, rank == ranks - 1) for rank in range(ranks))]


@FEW
@given(made_up=deliveries())
def test_steps_are_matched_where_all_ranks_have_them_and_counted_once_where_not(made_up):
    rings, reads = made_up
    seen = []
    matching = Matching(seen.append)
    for rank in range(len(rings)):
        matching.set_facts(rank, {**records.FACTS, "tp": len(rings), "rank": rank})
    at = [0] * len(rings)
    for rank, count, settle in reads:
        numbers = range(at[rank], min(at[rank] + count, STEPS))
        at[rank] += len(numbers)
        steps = [of_kind(rings[rank][number], number) for number in numbers if rings[rank][number] != "lost"]
        if steps:
            delivered(matching, rank, *steps)
        if settle:
            matching.settle()
    for rank in range(len(rings)):  # one more step, so that each has gone past the last one
        delivered(matching, rank, records.step(number=STEPS, wall_time=STEPS + 1.0))
    matching.settle()
    kinds = [[ring[number] for ring in rings] for number in range(STEPS)]
    without = {"lost", "not sampled"}
    same = [number for number in range(STEPS) if len(set(kinds[number])) == 1 and kinds[number][0] not in without]
    assert [int(each.step["number"]) for each in seen] == same
    assert all(each.ranks == tuple(range(len(rings))) for each in seen)
    different = [n for n in range(STEPS) if not without & set(kinds[n]) and n not in same]
    missing = [n for n in range(STEPS) if without & set(kinds[n]) and set(kinds[n]) - without]
    assert matching.unmatched == {
        **dict.fromkeys(Unmatched, 0), Unmatched.DIFFERENT: len(different), Unmatched.MISSING: len(missing),
    }  # fmt: skip


@FEW
@given(
    reads=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.booleans()), max_size=40),
    lengths=st.lists(st.integers(1, STEPS), min_size=1, max_size=4),
)
def test_no_step_is_matched_with_one_of_an_earlier_life_of_the_server(reads, lengths):
    """``lengths``: steps of each life. A reader comes to the next one when it has read all of the one before."""
    ranks = 3
    seen = []
    matching = Matching(seen.append)
    facts = {**records.FACTS, "tp": ranks}
    place = [(0, 0)] * ranks
    for rank in range(ranks):
        matching.set_facts(rank, {**facts, "rank": rank, "started": 0.5})
    whole = [(rank, STEPS, True) for rank in range(ranks)] * len(lengths)
    for rank, count, settle in [*reads, *whole]:
        life, first = place[rank]
        if first == lengths[life] and life + 1 < len(lengths):
            life, first = life + 1, 0
            matching.restarted(rank)
            matching.set_facts(rank, {**facts, "rank": rank, "started": 1000.0 * life + 0.5})
        last = min(first + count, lengths[life])
        if last > first:
            delivered(matching, rank, *(made(number, life) for number in range(first, last)))
        place[rank] = life, last
        if settle:
            matching.settle()
    assert place == [(len(lengths) - 1, lengths[-1])] * ranks
    assert all(len(set(each.seconds.reshape(-1))) == 1 for each in seen)
    numbers = [(float(each.seconds[0, 0]), int(each.step["number"])) for each in seen]
    assert len(set(numbers)) == len(numbers)
    assert matching.unmatched[Unmatched.DIFFERENT] == 0
    last = 1.0 + len(lengths) - 1
    assert [number for life, number in numbers if life == last] == list(range(lengths[-1]))
