"""Steps of the fake host through the real hooks, with exact times."""

import inspect
import threading

import fake_host
import pytest
from fake_host import COST, LAYER_SECONDS, LAYERS, InferReq, ModelInput

from lightllm_otel.records import layout, progress
from lightllm_otel.records.vocabulary import IdleReason, Implementation, Mode, Operator, Site, StepOnlyReason
from lightllm_otel.worker.host.operators import Transport
from lightllm_otel.worker.host.slots import TORCH_LEAVES


def request(rpc, phase="decode", requests=None, batch=1, tokens=None):
    rpc.waiting.append((ModelInput(batch, 8 * batch, phase == "prefill", tokens), requests or [InferReq(8)] * batch))
    return rpc.decode()


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_every_operator_of_a_step_has_its_exact_time(serve, phase):
    _, session, rpc = serve()
    request(rpc, phase)
    rpc.decode()
    assert session.kept.phases() == [phase]
    assert session.kept.seconds() == {
        "embedding": [COST["embedding"]],
        **LAYER_SECONDS,
        "lm_head": [COST["lm_head"]],
        "sampling": [COST["sample"]],
        "gap": [COST["between"]],
    }


def test_the_parts_sum_to_the_step_and_the_step_to_its_events(serve):
    _, session, rpc = serve(tp=2)
    request(rpc)
    step, intervals = session.kept.steps[-1]
    assert intervals["seconds"].sum() == step["seconds"] == step["closure_seconds"]


def test_a_collective_is_an_observation_of_its_own_with_site_layer_and_payload(serve):
    _, session, rpc = serve(tp=2)
    request(rpc)
    intervals = session.kept.steps[-1][1]
    reduces = intervals[intervals["operator"] == Operator.ALL_REDUCE.code]
    assert [Site.of(int(site)).value for site in reduces["site"]] == ["embedding", *["attention", "ffn"] * LAYERS]
    assert reduces["layer"].tolist() == [-1, 0, 0, 1, 1]
    assert reduces["occurrence"].tolist() == [0, 0, 1, 0, 1]
    assert reduces["payload_bytes"].tolist() == [1 * 8 * 2] * 5
    assert reduces["seconds"].tolist() == [COST["all_reduce"]] * 5


def test_while_a_step_is_launched_the_ring_says_how_far_its_host_is(serve):
    _, session, rpc = serve(tp=2)
    seen, layer = [], rpc.model.layers_infer[1]

    def looked(method):
        def look(*args, **kwargs):
            header = {"progress": session.kept.progress, "in_flight": 1, "in_flight_number": session.kept.in_flight}
            seen.append(str(progress.read(header)))
            return method(*args, **kwargs)

        return look

    pre = rpc.model.pre_infer
    ours = layer._ffn, pre.token_forward
    layer._ffn, pre.token_forward = map(looked, ours)
    request(rpc)
    layer._ffn, pre.token_forward = ours
    assert seen == ["nothing launched yet", "launched up to ffn_norm of layer 1"]


def test_when_a_step_is_launched_the_ring_says_so_until_the_next_one_with_boundaries(serve):
    _, session, rpc = serve()
    number = session.forwards.completed
    request(rpc)
    header = {"progress": session.kept.progress, "in_flight": 1, "in_flight_number": number}
    assert progress.read(header).everything


def test_where_boundaries_do_not_suffice_the_ring_does_not_say_how_far_the_host_is(serve, now):
    _, session, rpc = serve(boundaries=4)
    session.clock.frontier = now[0]
    request(rpc)
    header = {"progress": session.kept.progress, "in_flight": 1, "in_flight_number": session.kept.in_flight}
    assert progress.read(header) is None


def test_what_is_nested_is_taken_out_of_its_operator_and_the_pieces_are_one_observation(serve):
    _, session, rpc = serve(tp=2)
    request(rpc)
    seconds = session.kept.seconds()
    assert seconds["lm_head"] == [2 * COST["lm_head"]]
    assert seconds["all_gather"] == [COST["all_reduce"]]
    assert seconds["embedding"] == [COST["embedding"]]


def test_a_group_that_calls_torch_is_counted_once(serve):
    _, session, rpc = serve(tp=2)
    request(rpc)
    assert len(session.kept.seconds()["all_reduce"]) == 1 + 2 * LAYERS


@pytest.mark.parametrize(("custom", "implementation"), [(False, Implementation.NCCL), (True, Implementation.CUSTOM)])
def test_a_collective_says_who_moved_the_data(serve, custom, implementation):
    _, session, rpc = serve(tp=2, host_options={"custom": custom})
    request(rpc)
    intervals = session.kept.steps[-1][1]
    reduces = intervals[intervals["operator"] == Operator.ALL_REDUCE.code]
    gathers = intervals[intervals["operator"] == Operator.ALL_GATHER.code]
    assert {Implementation.of(int(how)) for how in reduces["implementation"]} == {implementation}
    assert {Implementation.of(int(how)) for how in gathers["implementation"]} == {Implementation.NCCL}
    assert not intervals["implementation"][intervals["operator"] == Operator.FFN.code].any()


# Tokens that are split over the ranks (tpsp): padded to a multiple of them, gathered before and scattered after the matrices.
BATCH, HIDDEN, BYTES = 3, 8, 2
WHOLE = 4 * HIDDEN * BYTES


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_split_tokens_have_the_exact_times_of_operators_and_of_what_is_nested_in_them(serve, phase):
    _, session, rpc = serve(tp=2, host_options={"tpsp": True})
    request(rpc, phase, batch=BATCH)
    rpc.decode()
    assert session.kept.seconds() == {
        "embedding": [COST["embedding"] + COST["pad_copy"]],
        **LAYER_SECONDS,
        "lm_head": [2 * COST["lm_head"]],
        "sampling": [COST["sample"]],
        "gap": [COST["between"]],
        "all_reduce": [COST["all_reduce"]],
        "all_gather": [COST["gather_into"]] * (2 * LAYERS) + [COST["all_gather"]] * 2,
        "reduce_scatter": [COST["reduce_scatter"]] * (2 * LAYERS),
    }
    step, intervals = session.kept.steps[-1]
    assert intervals["seconds"].sum() == step["seconds"] == step["closure_seconds"]
    assert len(session.kept.steps) == 1


@pytest.mark.parametrize(("custom", "implementation"), [(False, Implementation.NCCL), (True, Implementation.CUSTOM)])
def test_what_gathers_and_scatters_split_tokens_says_where_it_was_how_much_and_who_moved_it(
    serve, custom, implementation
):
    _, session, rpc = serve(tp=2, host_options={"tpsp": True, "custom": custom})
    request(rpc, batch=BATCH)
    rpc.decode()
    intervals = session.kept.steps[-1][1]

    def said(operator):
        found = intervals[intervals["operator"] == operator.code]
        sites = [Site.of(int(site)).value for site in found["site"]]
        ways = [Implementation.of(int(how)) for how in found["implementation"]]
        return list(
            zip(found["layer"].tolist(), found["occurrence"].tolist(), sites, found["payload_bytes"].tolist(), ways)
        )

    in_layers = [
        (layer, occurrence, site, WHOLE)
        for layer in range(LAYERS)
        for occurrence, site in enumerate(["attention", "ffn"])
    ]
    at_the_end = [(-1, 0, "lm_head", WHOLE, Implementation.NCCL), (-1, 1, "lm_head", 2 * WHOLE, Implementation.NCCL)]
    assert said(Operator.ALL_GATHER) == [(*each, implementation) for each in in_layers] + at_the_end
    assert said(Operator.REDUCE_SCATTER) == [(*each, Implementation.NCCL) for each in in_layers]  # torch's in any case
    assert said(Operator.ALL_REDUCE) == [(-1, 0, "embedding", BATCH * HIDDEN * BYTES, implementation)]


def arguments_of(leaf):
    """Return the arguments by name, in torch's order: all data of two ranks, or one rank's part."""
    part, whole = fake_host.Tensor(5), fake_host.Tensor(10)
    return {
        "all_reduce": {"tensor": whole},
        "all_gather": {"tensor_list": [part, part], "tensor": part},
        "all_gather_into_tensor": {"output_tensor": whole, "input_tensor": part},
        "reduce_scatter_tensor": {"output": part, "input": whole},
        "all_to_all_single": {"output": whole, "input": whole},
    }[leaf.name]


@pytest.mark.parametrize("by_name", [0, 1, 2], ids=["none by name", "the last by name", "all by name"])
@pytest.mark.parametrize("leaf", TORCH_LEAVES, ids=lambda leaf: leaf.name)
def test_a_payload_is_known_however_it_is_passed(serve, leaf, by_name):
    host, session, rpc = serve(tp=2)
    layer, given = rpc.model.layers_infer[0], arguments_of(leaf)
    ffn, names = layer._ffn, list(given)[: len(given) - by_name if by_name < 2 else 0]

    def collective_before(*args):
        getattr(host.dist, leaf.name)(
            *[given[name] for name in names], **{name: given[name] for name in given if name not in names}
        )
        return ffn(*args)

    layer._ffn = collective_before
    request(rpc)
    layer._ffn = ffn
    intervals = session.kept.steps[-1][1]
    chosen = (intervals["operator"] == leaf.operator.code) & (intervals["layer"] == 0)
    assert 10 * BYTES in intervals["payload_bytes"][chosen].tolist()


@pytest.mark.parametrize("leaf", TORCH_LEAVES, ids=lambda leaf: leaf.name)
def test_torch_has_the_argument_that_the_table_names_and_so_has_the_fake(now, leaf):
    real = pytest.importorskip("torch.distributed", reason="torch is not installed here")
    for module in (real, fake_host.make(now).dist):
        assert {*leaf.payload} <= set(inspect.signature(getattr(module, leaf.name)).parameters)


def test_a_collective_without_a_payload_that_is_known_has_none(serve):
    host, session, rpc = serve(tp=2)
    layer = rpc.model.layers_infer[0]
    ffn = layer._ffn

    def wrong_call(*args):
        with pytest.raises(TypeError):
            host.dist.all_reduce(group=None)
        return ffn(*args)

    layer._ffn = wrong_call
    request(rpc)
    layer._ffn = ffn
    intervals = session.kept.steps[-1][1]
    assert sorted(intervals["payload_bytes"][intervals["operator"] == Operator.ALL_REDUCE.code])[0] == 0
    assert not any(session.guard.errors)


def test_a_backend_that_cannot_be_asked_is_unknown():
    def ask():
        raise ValueError("no process group")

    assert Transport(ask).torch is Implementation.UNKNOWN


@pytest.mark.parametrize(
    ("backend", "known"), [("nccl", "nccl"), ("cpu:gloo,cuda:nccl", "nccl"), ("gloo", "gloo"), ("mpi", "unknown")]
)
def test_torch_says_which_backend_it_has(backend, known):
    assert Transport(lambda: backend).torch.value == known


def test_a_collective_outside_a_forward_is_not_counted(serve):
    host, session, rpc = serve(tp=2)
    host.dist.all_reduce(fake_host.Tensor(4))
    request(rpc)
    assert len(session.kept.seconds()["all_reduce"]) == 1 + 2 * LAYERS


def test_steps_before_the_model_serves_are_not_counted(serve):
    _, session, rpc = serve()
    rpc.decode()
    assert session.kept.steps == []


def test_old_prefill_counts_what_lies_between_its_operators_as_gap(serve):
    host, session, _ = serve(old=True)
    session.model.forward(1, 4, 4, fake_host.Tensor(4))
    host.post_process.sample("logits", [InferReq(8)])
    seconds = session.kept.seconds()
    assert "residual" not in seconds
    assert seconds["ffn"] == [COST["ffn"]] * LAYERS
    assert seconds["gap"] == [COST["add"] * 2 * LAYERS]


def test_old_decode_keeps_its_residuals(serve):
    host, session, _ = serve(old=True)
    session.model.forward(1, 4, 4, fake_host.Tensor(1), is_prefill=False)
    host.post_process.sample("logits", [InferReq(8)])
    assert session.kept.seconds()["residual"] == [COST["add"]] * (2 * LAYERS)


def test_a_graph_without_an_instrumented_graph_has_its_time_and_its_padded_batch_and_is_counted(serve):
    _, session, rpc = serve(kvargs="graphs", environ={"LIGHTLLM_OTEL_GRAPHS": "off"})
    request(rpc, batch=3)
    rpc.decode()
    step, intervals = session.kept.steps[-1]
    assert Mode.of(int(step["mode"])) is Mode.GRAPH
    assert (step["batch"], step["padded"]) == (3, 4)
    layer = sum(COST[name] for name in ("att_norm", "qkv", "kv", "attention", "o", "add", "ffn_norm", "ffn", "add"))
    graph = COST["embedding"] + LAYERS * layer + COST["lm_head"]
    assert step["seconds"] == graph + COST["between"] + COST["sample"]
    assert len(intervals) == 0
    assert session.kept.step_only[StepOnlyReason.NOT_INSTRUMENTED.code] == 1


def test_capturing_a_graph_while_serving_records_no_boundaries(serve):
    _, session, rpc = serve(kvargs="graphs")
    rpc.model.graph.graph.clear()  # as the branch that captures again at run time
    request(rpc)
    rpc.decode()
    assert len(session.kept.steps[-1][1]) == 0
    assert session.kept.step_only[StepOnlyReason.NOT_INSTRUMENTED.code] == 1


def test_idle_time_says_what_the_gpu_waited_for(serve, now):
    _, session, rpc = serve()
    request(rpc)
    now[0] += 0.25
    request(rpc)
    rpc.decode()
    now[0] += 0.5
    request(rpc)
    reasons = [(IdleReason.of(int(s["idle_reason"])).value, float(s["idle_seconds"])) for s, _ in session.kept.steps]
    assert reasons == [("none", 0.0), ("host", 0.25), ("no_requests", 0.5)]


def test_health_checks_are_no_requests_and_have_no_tokens(serve):
    _, session, rpc = serve()
    request(rpc, "prefill", [InferReq(8, 600), InferReq(-1, 9, 2)], batch=2, tokens=607)
    request(rpc, "prefill", [InferReq(-1, 5)], tokens=5)
    request(rpc, batch=3, requests=[InferReq(8), InferReq(-1), InferReq(16)])
    counted = [(int(step["requests"]), int(step["tokens"])) for step, _ in session.kept.steps]
    assert counted == [(1, 600), (0, 0), (2, 2)]


def test_a_health_check_whose_prompt_is_cached_is_found_as_the_newest_request_of_a_decode_step(serve):
    _, session, rpc = serve()
    request(rpc, batch=2, requests=[InferReq(8), InferReq(-1)])
    request(rpc, batch=3, requests=[InferReq(8), InferReq(-1), InferReq(16)])
    counted = [(int(step["requests"]), int(step["tokens"])) for step, _ in session.kept.steps]
    assert counted == [(1, 1), (2, 2)]


def test_a_step_without_sampling_is_read_on_the_idle_tick(serve):
    _, session, rpc = serve()
    session.model.forward(ModelInput(1, 8, False))
    assert session.kept.steps == []
    rpc.decode()
    assert len(session.kept.steps) == 1


def test_a_model_without_sampling_is_read_while_it_is_busy(serve):
    _, session, rpc = serve()
    for _ in range(100):
        rpc.model.forward(ModelInput(1, 8, False))
    assert len(session.kept.steps) > 90
    assert sum(session.timer.pending.dropped) == 0


def test_old_reads_its_last_step_when_the_batch_is_removed(serve):
    host, session, _ = serve(old=True)
    backend = host.base_backend.ModeBackend()
    session.clock.frontier = 0.0
    session.model.forward(1, 4, 4, fake_host.Tensor(1), is_prefill=False)
    host.post_process.sample("logits", [InferReq(8)])
    assert session.kept.steps == []
    session.clock.frontier = float("inf")
    backend.remove_batch(0)
    assert len(session.kept.steps) == 1


def test_a_step_that_the_gpu_has_not_finished_is_left_alone(serve, now):
    _, session, rpc = serve()
    session.clock.frontier = now[0]
    request(rpc)
    assert session.kept.steps == []
    assert session.kept.in_flight == session.forwards.completed - 1
    session.clock.frontier = float("inf")
    rpc.decode()
    assert len(session.kept.steps) == 1
    assert session.kept.in_flight is None


def test_level_steps_records_no_boundaries(serve):
    _, session, rpc = serve(operators_too=False)
    request(rpc)
    rpc.decode()
    step, intervals = session.kept.steps[-1]
    assert (len(intervals), step["flags"] & layout.SAMPLED) == (0, 0)


def test_a_second_model_is_not_measured(serve):
    host, session, rpc = serve()
    draft = host.basemodel.TpPartBaseModel()
    draft.forward(ModelInput(1, 1, False))
    rpc.decode()
    assert session.kept.steps == []
    request(rpc)
    assert len(session.kept.steps) == 1
    assert session.kept.step_only[StepOnlyReason.DRAFT.code] == 3  # two of its own start, and the one above


def test_two_threads_that_take_turns_and_read_late_keep_their_steps_apart(serve, now):
    """With two threads per model, forward and sampling of the next step come before this step is done."""
    host, session, rpc = serve(kvargs="graphs")
    turn = threading.Condition()
    steps = iter(range(12))
    problems = []

    def thread(own):
        try:
            for number in steps:
                with turn:
                    session.clock.frontier = now[0]  # the GPU is still at the step before
                    model_input = ModelInput(1 + number % 3, 8, False, value=number)
                    logits = rpc.model.forward(model_input)
                    assert host.post_process.sample(logits, [InferReq(8)]) == fake_host.answer(model_input)
                    turn.notify()
                    turn.wait(timeout=0.2)
        except BaseException as problem:  # noqa: BLE001 - shown below
            problems.append(problem)

    threads = [threading.Thread(target=thread, args=(own,)) for own in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(20)
    assert problems == []
    session.clock.frontier = float("inf")
    rpc.decode()
    assert sorted(int(step["number"]) for step, _ in session.kept.steps) == list(range(12))
    assert [int(step["batch"]) for step, _ in session.kept.steps] == [1 + number % 3 for number in range(12)]
    assert all(len(intervals) > 10 for _, intervals in session.kept.steps)
    assert sum(session.timer.pending.dropped) == 0


def test_the_branch_without_an_idle_call_is_read_when_it_asks_for_requests(serve):
    host, session, rpc = serve()
    backend = host.base_backend.ModeBackend()
    session.clock.frontier = 0.0
    request(rpc)
    assert session.kept.steps == []
    session.clock.frontier = float("inf")
    backend._try_read_new_reqs()
    assert session.kept.steps == []  # it was busy since it last asked
    backend._try_read_new_reqs()
    assert len(session.kept.steps) == 1
