"""Steps of the host of 2026: two infer threads take turns, and a step's work continues after its sampling."""

import fake_host_2026
import fakes
import pytest
from fake_gpu import COST

from lightllm_otel.records.vocabulary import IdleReason, Mode, Operator, Phase, StepOnlyReason

PROMPTS = ((5, 6, 7), tuple(range(40)), (9,))


@pytest.fixture
def serve(now):
    """Return ``serve(**options)`` → (host, session) of a server of 2026. ``plugin=False``: without the plugin."""
    made = []

    def start(plugin=True, every=1, strict=True, environ=None, **options):
        host = fake_host_2026.make(now, **options)
        session = fakes.FakeSession(host, every=every, strict=strict, environ=environ) if plugin else None
        if session is not None:
            session.patch()
        host.start()
        made.append((host, session))
        return host, session

    yield start
    for host, session in made:
        host.stop()
        if session is not None:
            session.undo()


def answers(host, prompts=PROMPTS, count=6):
    requests = [host.submit(prompt, count) for prompt in prompts]
    host.run()
    return [request.out for request in requests]


def idle(host, rounds=6):
    for _ in range(rounds):
        host.step()


# Which step is which ------------------------------------------------------------------------------------------------------


def test_no_figure_is_shifted_by_a_step(serve, now):
    """Batches 1, 2, 3, … in turn: batch, tokens, context and GPU time of every step belong together."""
    host, session = serve(graphs=True, sizes=(1, 2, 4, 8))
    model, pack = host.backend.model, host.overlap_events.OverlapEventPack
    asked, expected = [], []
    forward, ended = model.forward, pack.notify_post_handle_and_wait_pre_post_handle

    def entered(model_input):
        tokens = model_input.total_token_num - (model_input.prefix_total_token_num or 0)
        phase = "prefill" if model_input.is_prefill else "decode"
        new = tokens if model_input.is_prefill else model_input.batch_size
        asked.append((phase, model_input.batch_size, new, model_input.total_token_num, now[0]))
        return forward(model_input)

    def launched(self):
        while asked:
            *work, began = asked.pop()
            expected.append((*work, now[0] - began))
        return ended(self)

    model.forward, pack.notify_post_handle_and_wait_pre_post_handle = entered, launched
    for more in range(1, 6):
        host.submit(tuple(range(more * 3)), 12)
        for _ in range(4):
            host.step()
    host.run()
    idle(host)
    del model.forward
    seen = [
        (Phase.of(int(s["phase"])).value, int(s["batch"]), int(s["tokens"]), int(s["context"]), float(s["seconds"]))
        for s, _ in session.kept.steps
    ]
    assert [step[:4] for step in seen] == [step[:4] for step in expected]
    assert [step[4] for step in seen] == pytest.approx([step[4] for step in expected])
    assert {step[1] for step in seen if step[0] == "decode"} == {1, 2, 3, 4, 5}
    assert [int(s["number"]) for s, _ in session.kept.steps] == list(range(len(seen)))


def test_what_follows_sampling_on_the_gpu_is_work_of_the_step_and_no_idle_time(serve):
    host, session = serve()
    answers(host, PROMPTS[:1], 3)
    idle(host)
    step, intervals = session.kept.steps[-1]
    others = intervals["seconds"][intervals["operator"] == Operator.OTHER.code]
    assert others[-1] >= COST["scatter_token"] + COST["to_cpu"]
    assert intervals["seconds"].sum() == pytest.approx(float(step["seconds"]))


def test_answers_are_the_hosts_own_eager_and_in_graphs(serve):
    for graphs in (False, True):
        stock, _ = serve(plugin=False, graphs=graphs)
        host, session = serve(graphs=graphs)
        assert answers(host) == answers(stock)
        assert session.guard.errors == [0] * len(session.guard.errors)
        assert session.instrumented_graphs.state == ("armed" if graphs else "waiting")


def test_a_sampled_step_in_a_graph_has_its_operators(serve):
    host, session = serve(graphs=True)
    answers(host)
    idle(host)
    decode = [(step, found) for step, found in session.kept.steps if step["phase"] == Phase.DECODE.code]
    assert {Mode.of(int(step["mode"])) for step, _ in decode} == {Mode.GRAPH}
    layers = len(host.backend.model.layers_infer)
    for _, intervals in decode:
        for operator in (Operator.QKV_PROJ, Operator.ATTENTION, Operator.O_PROJ, Operator.FFN):
            assert (intervals["operator"] == operator.code).sum() == layers
    assert session.kept.step_only == [0] * len(StepOnlyReason)


def test_drafts_belong_to_the_step_of_the_model_that_they_draft_for(serve):
    host, session = serve(mtp=2)
    answers(host, PROMPTS[:1], 6)
    idle(host)
    forwards = sum(function.endswith("forward") for _, function in host.calls if "TpPartBaseModel.forward" in function)
    assert len(session.kept.steps) < forwards
    assert session.timer.step_only[StepOnlyReason.DRAFT.code] > 0
    _, intervals = next(each for each in reversed(session.kept.steps) if each[0]["phase"] == Phase.DECODE.code)
    drafts = float(intervals["seconds"][intervals["operator"] == Operator.OTHER.code].sum())
    assert drafts > COST["ffn"]


def test_a_step_without_requests_of_data_parallelism_ends_without_sampling(serve):
    host, session = serve(dp=2)
    answers(host, PROMPTS[:1], 3)
    idle(host, 8)
    assert len(session.kept.steps) > 3
    assert sum(session.timer.pending.dropped) == 0


def test_steps_of_a_host_that_closes_its_overlap_end_before_requests_are_handled(now):
    host = fake_host_2026.make(now)
    session = fakes.FakeSession(host).patch()
    host.start(support_overlap=False)
    answers(host, PROMPTS[:1], 4)
    idle(host)
    assert sum(session.timer.pending.dropped) == 0
    seconds = [float(step["seconds"]) for step, _ in session.kept.steps]
    assert all(0 < each < 1 for each in seconds)
    host.stop()
    session.undo()


# Idle time, and what is in flight -----------------------------------------------------------------------------------------


def test_idle_time_is_for_lack_of_requests_or_for_the_scheduler_or_for_the_host(serve, now):
    host, session = serve()
    answers(host, PROMPTS[:1], 3)
    idle(host)
    now[0] += 5.0
    answers(host, PROMPTS[:1], 3)
    idle(host)
    reasons = {}
    for step, _ in session.kept.steps:
        reason = IdleReason.of(int(step["idle_reason"]))
        reasons[reason] = reasons.get(reason, 0.0) + float(step["idle_seconds"])
    assert reasons[IdleReason.NO_REQUESTS] >= 5.0
    assert sum(reasons.values()) - reasons[IdleReason.NO_REQUESTS] < 1.0


def test_the_ring_names_the_oldest_step_in_flight_and_none_when_the_host_has_waited_for_all(serve, now):
    host, session = serve()
    seen = []
    forward = host.backend.model.forward

    def entered(model_input):
        session.clock.frontier = now[0]  # the GPU is done with what was launched before this step
        result = forward(model_input)
        seen.append((session.kept.in_flight, session.forwards.completed - 1))
        return result

    host.backend.model.forward = entered
    answers(host, PROMPTS[:1], 6)
    assert {number - shown for shown, number in seen} <= {0, 1}
    assert 1 in {number - shown for shown, number in seen}
    session.clock.frontier = float("inf")
    idle(host)
    assert session.kept.in_flight is None


# Graphs of prefill, and what is left alone --------------------------------------------------------------------------------


def test_a_prefill_graph_is_timed_in_mode_graph_without_operators(serve):
    stock, _ = serve(plugin=False, prefill_graphs=True, graphs=True)
    host, session = serve(prefill_graphs=True, graphs=True)
    assert answers(host) == answers(stock)
    idle(host)
    prefills = [(step, found) for step, found in session.kept.steps if step["phase"] == Phase.PREFILL.code]
    largest = host.backend.model.prefill_graph.max_handle_token_num
    in_graphs = [step["tokens"] <= largest for step, _ in prefills]
    assert [Mode.of(int(step["mode"])) is Mode.GRAPH for step, _ in prefills] == in_graphs
    assert [len(found) == 0 for _, found in prefills] == in_graphs
    assert session.kept.step_only[StepOnlyReason.PREFILL_GRAPH.code] == sum(in_graphs) > 0


def test_graphs_off_touches_nothing_of_the_graph_classes(serve):
    host, session = serve(graphs=True, prefill_graphs=True, environ={"LIGHTLLM_OTEL_GRAPHS": "off"})
    for owner in (host.cuda_graph.CudaGraph, host.prefill_cuda_graph.PrefillCudaGraph):
        files = {each.__code__.co_filename for each in vars(owner).values() if hasattr(each, "__code__")}
        assert not any("lightllm_otel" in file for file in files)
    assert session.fits.facts()["rows"]["graph_replay"] == "LIGHTLLM_OTEL_GRAPHS=off"
    answers(host)
    idle(host)
    modes = {Mode.of(int(step["mode"])) for step, _ in session.kept.steps if step["phase"] == Phase.DECODE.code}
    assert modes == {Mode.GRAPH}


@pytest.mark.parametrize("options", [{"microbatches": True, "dp": 2}, {"saver": True}])
def test_modes_whose_graphs_are_not_safe_to_capture_again_have_steps_only(serve, options):
    host, session = serve(graphs=True, **options)
    answers(host)
    idle(host)
    assert session.instrumented_graphs.by_size == {}
    assert session.kept.steps
    assert session.guard.errors == [0] * len(session.guard.errors)


def test_after_a_failure_of_ours_the_exporter_is_still_looked_after(serve):
    host, session = serve(strict=False)
    session.clock.fails = True
    answers(host, PROMPTS[:1], 3)
    assert session.timer.failed
    before = session.housekept
    answers(host, PROMPTS[:1], 3)
    assert session.housekept > before
