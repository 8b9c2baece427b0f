"""Agreement of the ranks: all replay the same graph, or none is instrumented. Each rank fails alone, and the others must
follow."""

import itertools
import threading

import pytest
import ranks
from fake_host import ModelInput, answer

from lightllm_otel.records.vocabulary import Level, Stage
from lightllm_otel.worker.gpu import agreement
from lightllm_otel.worker.gpu.agreement import Ballot
from lightllm_otel.worker.gpu.calibration import PAIRS
from lightllm_otel.worker.sampling import Sampling


@pytest.fixture(autouse=True)
def _short_patience(monkeypatch):
    monkeypatch.setattr(agreement, "COLLECT_SECONDS", 0.4)
    monkeypatch.setattr(agreement, "VERDICT_SECONDS", 0.8)


@pytest.fixture
def serve():
    servers = []

    def start(**options):
        servers.append(ranks.Server(**options))
        return servers[-1].start()

    yield start
    for server in servers:
        server.close()


def right(value=0, batch=1):
    return answer(ModelInput(batch, 8, False, value=value))


def assert_serves(server, steps=12):
    """Check that every rank answers and no all_reduce met another one; return which steps replayed instrumented graphs."""
    chosen = []
    for value in range(steps):
        answers = server.ask(value=value)
        assert answers == dict.fromkeys(range(server.ranks), right(value))
        replayed = {rank: server.instrumented_replays(rank) for rank in range(server.ranks)}
        assert len(set(map(tuple, replayed.values()))) == 1, replayed
        chosen += replayed[0]
    return chosen


@pytest.mark.parametrize("count", [2, 3])
def test_ranks_that_agree_replay_instrumented_graphs_on_the_same_steps(serve, count):
    server = serve(ranks=count, every=3)
    chosen = assert_serves(server, 30)
    assert 3 < sum(chosen) < 20
    assert {session.instrumented_graphs.state for session in server.sessions.values()} == {"armed"}


def test_the_fake_all_reduce_breaks_when_one_rank_replays_an_instrumented_graph_alone(serve):
    server = serve(every=1)
    server.sessions[1].forwards.follow(Level.STEPS, Sampling(1))
    with pytest.raises(ranks.ForeignBuffers):
        server.ask()


def raises(*args, **kwargs):
    raise RuntimeError("of our own")


def no_timestamps(session):
    session.choose_timestamps = lambda capacity: None


def timestamps_raise(session):
    session.choose_timestamps = raises


def no_ballot(session):
    session.ballot = raises


def little_memory(session):
    session.graphs.free = 1 << 20


def capture_fails(session):
    session.graphs.fails = True


def second_capture_fails(session):
    """Fail where a graph is instantiated: all of its nodes exist, but not its memory."""
    capture, made = session.graphs.capture, session.graphs.made

    def sometimes(pool, body):
        graph = capture(pool, body)
        if len(made) > 2:  # the first is the calibration's own
            raise MemoryError("CUDA out of memory")
        return graph

    session.graphs.capture = sometimes


def timestamp_fails(session):
    session.timestamps.timestamp = raises


def outputs_differ(session):
    session.graphs.same = lambda left, right: False


def comparing_fails(session):
    session.graphs.same = raises


def copying_fails(session):
    session.graphs.deliver = raises


def calibrating_fails(session):
    session.graphs.wait = raises


def timestamps_cannot_be_read(session):
    intervals, seen = session.timestamps.intervals, []

    def only_those_of_the_calibration(replay, count):
        seen.append(replay)
        if len(seen) > 6:
            raise RuntimeError("no timestamps in the slot")
        return intervals(replay, count)

    session.timestamps.intervals = only_those_of_the_calibration


def nth(name, which):
    """Let the ``which``-th call of a part of the plugin fail."""

    def failure(session):
        own, calls = getattr(session.graphs, name), itertools.count(1)

        def sometimes(*arguments):
            if next(calls) == which:
                raise MemoryError("of our own")
            return own(*arguments)

        setattr(session.graphs, name, sometimes)

    failure.__name__ = f"{name}_{which}"
    return failure


BEFORE_ARMING = [
    *(nth(name, which) for name in ("spoil", "copy_of") for which in (1, 2, 3, 4, 6)),
    timestamps_cannot_be_read,
    no_timestamps, timestamps_raise, no_ballot, little_memory, capture_fails, second_capture_fails,
    timestamp_fails, outputs_differ,
    comparing_fails, copying_fails, calibrating_fails,
]  # fmt: skip


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("failure", BEFORE_ARMING, ids=lambda failure: failure.__name__)
def test_a_rank_that_fails_alone_while_starting_takes_instrumented_graphs_from_all(serve, failure, rank):
    def prepare(number, session):
        if number == rank:
            failure(session)

    server = serve(every=1, prepare=prepare)
    assert {session.instrumented_graphs.state for session in server.sessions.values()} == {"refused"}
    assert not any(assert_serves(server))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("which", [1, PAIRS + 1, 2 * PAIRS, 3 * PAIRS + 1, 3 * PAIRS + 2, 4 * PAIRS])
def test_a_rank_that_cannot_time_a_replay_replays_as_often_as_the_others(serve, which, rank):
    def prepare(number, session):
        if number == rank:
            nth("seconds", which)(session)

    server = serve(every=1, prepare=prepare)
    assert len({session.instrumented_graphs.state for session in server.sessions.values()}) == 1
    assert len(set(assert_serves(server))) == 1
    assert server.sessions[rank].guard.errors[Stage.PATCH.code] >= 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_without_the_plugin_takes_instrumented_graphs_from_all(serve, rank):
    server = serve(every=1, absent=(rank,))
    (session,) = server.sessions.values()
    assert session.instrumented_graphs.state == "refused"
    assert not any(assert_serves(server))


@pytest.mark.parametrize("differing", [{"NCCL_GRAPH_MIXING_SUPPORT": "0"},
                                       {"LIGHTLLM_OTEL_SAMPLE_EVERY": "7"}, {"LIGHTLLM_OTEL_GRAPH_BATCH_SIZES": "1"},
                                       {"LIGHTLLM_OTEL_GRAPHS": "force"}])  # fmt: skip
def test_ranks_with_different_settings_have_no_instrumented_graphs(serve, differing):
    server = serve(every=1, environ=lambda rank: differing if rank else {})
    assert {session.instrumented_graphs.state for session in server.sessions.values()} == {"refused"}
    assert not any(assert_serves(server))


def test_a_rank_that_wants_none_takes_instrumented_graphs_from_all(serve):
    server = serve(every=1, environ=lambda rank: {"LIGHTLLM_OTEL_GRAPHS": "off"} if rank else {})
    assert {session.instrumented_graphs.state for session in server.sessions.values()} == {"refused", "off"}
    assert not any(assert_serves(server))


def clock_fails(session):
    session.clock.fails = True


def reading_fails(session):
    session.timestamps.intervals = raises


def ring_fails(session):
    session.kept.write = raises


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("failure", [clock_fails, reading_fails, ring_fails], ids=lambda failure: failure.__name__)
def test_a_rank_that_fails_after_arming_still_replays_what_the_others_replay(serve, failure, rank):
    server = serve(every=2)
    before = assert_serves(server, 6)
    failure(server.sessions[rank])
    after = assert_serves(server, 20)
    assert server.sessions[rank].timer.failed
    assert not server.sessions[1 - rank].timer.failed
    assert 2 < sum(before + after) < 24


@pytest.mark.parametrize("broken", [(0,), (1,), (0, 1)])
def test_a_forward_that_is_repeated_after_an_exception_keeps_the_ranks_together(serve, broken):
    server = serve(every=2)
    for value in range(16):
        answers = server.ask(value=value, broken=broken if value % 3 == 0 else ())
        assert answers == {0: right(value), 1: right(value)}


def test_a_change_of_the_rule_at_any_step_keeps_the_ranks_together(serve):
    for at in range(6):
        server = serve(every=1)
        for session in server.sessions.values():
            session.orders = [(at, Level.OPERATORS, 3), (at + 4, Level.OFF, 1), (at + 7, Level.OPERATORS, 1)]
        chosen = assert_serves(server, 16)
        assert chosen[:at] == [True] * at
        assert chosen[at + 4 : at + 7] == [False] * 3
        assert all(chosen[at + 7 :])


# The vote itself ----------------------------------------------------------------------------------------------------------


def vote_all(votes, store=None, **patience):
    """Return {rank: verdict} of votes that are cast at the same time. A vote ``...`` is a rank that never votes."""
    store = store or ranks.MemoryStore()
    verdicts = {}

    def cast(rank, vote):
        verdicts[rank] = Ballot(store, rank, len(votes)).agree("topic", vote)

    threads = [threading.Thread(target=cast, args=each) for each in enumerate(votes) if each[1] is not ...]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return verdicts


@pytest.mark.parametrize(
    ("votes", "verdict"),
    [
        (["same", "same", "same"], True),
        (["same", "same", "other"], False),
        (["same", None, "same"], False),
        ([None, "same", "same"], False),
        (["same", "same", ...], False),
        ([..., "same", "same"], False),
    ],
)
def test_the_verdict_is_yes_only_when_all_say_the_same_and_it_is_one(votes, verdict):
    assert set(vote_all(votes).values()) == {verdict}


def test_a_rank_that_gave_up_and_a_first_rank_that_is_late_have_the_same_verdict():
    store = ranks.MemoryStore()
    assert Ballot(store, 1, 2).agree("topic", "same") is False  # nobody answered it
    store.set("lightllm-otel//topic/0", "same")
    assert Ballot(store, 0, 2).agree("topic", "same") is False


def test_a_store_that_fails_is_a_no():
    class Lost(ranks.MemoryStore):
        def set(self, key, value):
            raise ConnectionError("the store is gone")

    assert Ballot(Lost(), 0, 2).agree("topic", "same") is False
    assert Ballot(None, 0, 2).agree("topic", "same") is False


def test_a_single_rank_needs_no_store():
    assert Ballot(None, 0, 1).agree("topic", "anything") is True
    assert Ballot(None, 0, 1).agree("topic", None) is False


def test_votes_go_through_torchs_own_store():
    distributed = pytest.importorskip("torch.distributed", reason="torch is not installed here")
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store = distributed.TCPStore("127.0.0.1", port, None, True, wait_for_workers=False)
    clients = [store, distributed.TCPStore("127.0.0.1", port, None, False)]
    for topic, votes, verdict in (("a", ["x", "x"], True), ("b", ["x", "y"], False), ("c", ["x", None], False)):
        verdicts = {}

        def cast(rank, topic=topic, votes=votes, verdicts=verdicts):
            verdicts[rank] = Ballot(clients[rank], rank, 2).agree(topic, votes[rank])

        threads = [threading.Thread(target=cast, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(verdicts.values()) == {verdict}
