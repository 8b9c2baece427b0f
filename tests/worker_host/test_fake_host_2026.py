"""The fake host of 2026 has the dangers of the real LightLLM: each test shows one."""

import copy

import fake_host_2026
import pytest
from fake_gpu import COST, CaptureBroken, Graph, Tensor
from fake_host_2026.turns import Stuck

PROMPTS = ((5, 6, 7), tuple(range(40)), (9,))
STEP = ("forward", "sample", "notify_post_handle_and_wait_pre_post_handle", "_pre_post_handle",
        "notify_forward_and_wait_post_handle", "_post_handle", "notify_pre_post_handle")  # fmt: skip


@pytest.fixture
def host(now):
    """Return ``host(**options)`` → a host of 2026 whose infer threads have been started."""
    made = []

    def start(support_overlap=True, before=lambda host: None, **options):
        made.append(fake_host_2026.make(now, **options))
        before(made[-1])
        made[-1].start(support_overlap)
        return made[-1]

    yield start
    for each in made:
        each.stop()


def tokens(host, prompts=PROMPTS, count=4):
    requests = [host.submit(prompt, count) for prompt in prompts]
    host.run()
    return [request.out for request in requests]


def steps(host):
    """Return (thread, part) for the parts of steps, in order."""
    parts = [(thread, function.split(".")[-1]) for thread, function in host.calls]
    return [(thread, name) for thread, name in parts if name in STEP]


# Threads ----------------------------------------------------------------------------------------------------------------


def test_the_two_threads_take_turns_and_the_next_step_is_launched_before_this_one_is_handled(host):
    running = host()
    running.calls.clear()
    tokens(running, PROMPTS[:1], 3)
    one, other = "infer-0", "infer-1"
    notify_post, pre_post, notify_forward, post, notify_pre_post = STEP[2:]
    assert steps(running)[:18] == [
        (one, "forward"), (one, "sample"), (one, notify_post), (one, pre_post), (one, notify_forward),
        (other, "forward"), (other, "sample"), (other, notify_post),
        (one, post), (one, notify_pre_post),
        (other, pre_post), (other, notify_forward),
        (one, "forward"), (one, "sample"), (one, notify_post),
        (other, post), (other, notify_pre_post),
        (one, pre_post),
    ]  # fmt: skip


def test_the_order_of_calls_is_the_same_in_every_run(host):
    first, second = host(graphs=True), host(graphs=True)
    assert tokens(first) == tokens(second)
    assert first.calls == second.calls


def test_threads_that_run_freely_give_the_same_tokens(host):
    assert tokens(host(free=True), PROMPTS[:1]) == tokens(host(), PROMPTS[:1])


def test_a_closed_overlap_has_one_step_at_a_time(host):
    running = host(support_overlap=False)
    running.calls.clear()
    tokens(running, PROMPTS[:1], 2)
    inside = [(thread, name) for thread, name in steps(running) if "notify" not in name]
    for at in range(0, 8, 4):
        thread = inside[at][0]
        assert inside[at : at + 4] == [
            (thread, name) for name in ("forward", "sample", "_pre_post_handle", "_post_handle")
        ]


def test_an_exception_ends_its_thread_and_the_other_one_waits_for_ever(host):
    running = host()
    running.machine.broken = True
    running.submit()
    assert [running.step(), running.step()] == ["infer-0", "infer-1"]
    with pytest.raises(Stuck):
        running.step()
    assert [(thread, str(error)) for thread, error in running.errors] == [("infer-0", "the host's own error")]


def test_an_asynchronous_gpu_runs_behind_the_host_and_a_step_is_launched_before_the_last_one_is_done(host, now):
    running = host(asynchronous=True)
    stream, launched = running.infer_batch.g_infer_context.get_overlap_stream(), []
    forward = running.backend.model.forward

    def noting(model_input):
        launched.append((now[0], stream.until))
        return forward(model_input)

    running.backend.model.forward = noting
    tokens(running, PROMPTS[:1])
    assert sum(host_time < gpu_time for host_time, gpu_time in launched) >= 3


# A step -----------------------------------------------------------------------------------------------------------------


def test_tokens_of_a_decode_step_are_on_the_gpu_only(host):
    running = host()
    model, seen = running.backend.model, []

    def noting(model_input, forward=model.forward):
        before = model_input.input_ids, model_input.b_seq_len.is_cuda
        result = forward(model_input)
        seen.append((model_input.is_prefill, *before, model_input.input_ids.is_cuda, model_input.b_seq_len.is_cuda))
        return result

    model.forward = noting
    tokens(running, PROMPTS[:1], 3)
    prefill, *decodes = seen
    assert (prefill[0], isinstance(prefill[1], Tensor), *prefill[2:]) == (True, True, False, True, True)
    assert set(decodes) == {(False, None, False, True, True)}


def test_who_reads_a_tensor_of_the_gpu_makes_the_host_wait(host):
    running = host()
    before = running.gpu.waits
    assert running.machine.on_gpu((1, 2)).tolist() == [1, 2]
    assert running.gpu.waits == before + 1
    assert running.machine.tensor((1, 2)).tolist() == [1, 2]
    assert running.gpu.waits == before + 1


def test_after_sampling_the_step_goes_on_with_what_follows(host):
    running = host()
    running.calls.clear()
    tokens(running, PROMPTS[:1], 1)
    names = [function.split(".")[-1] for _, function in running.calls]
    assert names.index("sample") < names.index("scatter_token") < names.index("async_copy_from_gpu_tensor")
    assert names.index("async_copy_from_gpu_tensor") < names.index(STEP[2])


@pytest.mark.parametrize("eagle", [False, True])
def test_drafts_run_behind_sampling_and_a_request_has_several_rows(host, eagle):
    running = host(mtp=2, eagle=eagle, graphs=True)
    main, drafts = running.backend.model, running.backend.draft_models
    assert len(drafts) == (1 if eagle else 2)
    assert all(draft.is_mtp_draft_model and draft.graph is not main.graph for draft in drafts)
    sampled = []
    sample = running.chunked_prefill.sample
    running.chunked_prefill.sample = lambda logits, reqs, eos: sampled.append(reqs) or sample(logits, reqs, eos)
    running.calls.clear()
    tokens(running, PROMPTS[:1], 4)
    assert {(len(reqs), len(set(reqs))) for reqs in sampled} == {(3, 1)}
    assert "forward sample forward forward notify_post_handle" in " ".join(name for _, name in steps(running))


def test_a_rank_without_requests_runs_a_forward_and_samples_nothing(host):
    running = host(dp=2, others=(0, 1))
    running.calls.clear()
    for _ in range(4):
        running.step()
    names = [name for _, name in steps(running)]
    assert names.count("forward") >= 2
    assert "sample" not in names
    assert "_pre_post_handle" not in names


def test_decode_requests_ride_in_a_prefill_and_are_flagged_on_the_cpu(host):
    running = host(mixed=True)
    model, boundary_codes = running.backend.model, []

    def noting(model_input, forward=model.forward):
        if model_input.is_prefill:
            boundary_codes.append((model_input.b_is_decode_req.is_cuda, model_input.b_is_decode_req.tolist()))
        return forward(model_input)

    model.forward = noting
    running.submit(PROMPTS[0], 6)
    for _ in range(3):
        running.step()
    running.submit(PROMPTS[1], 2)
    running.run()
    assert (False, [False, True]) in boundary_codes


def test_before_it_serves_a_model_warms_up_pads_captures_and_checks_in_this_order(host):
    running = host(graphs=True, prefill_graphs=True)
    wanted = (
        "_autotune_warmup",
        "_init_padded_req",
        "CudaGraph.warmup",
        "PrefillCudaGraph.warmup",
        "_check_max_len_infer",
    )
    order = [name for _, name in running.calls if name.endswith(wanted)]
    assert [name.replace("TpPartBaseModel.", "") for name in order] == list(wanted)
    assert {thread for thread, name in running.calls if name.startswith("TpPartBaseModel.")} == {"rpc"}


# Graphs -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"tp": 2, "custom": True}, {"tp": 2, "tpsp": True}, {"mtp": 1}, {"mtp": 2, "eagle": True}, {"linear": True, "tp": 2},
     {"dp": 2, "microbatches": True, "tp": 2}],
    ids=str,
)  # fmt: skip
def test_graphs_give_the_same_tokens_as_eager_code(host, options):
    eager = tokens(host(**options))
    assert tokens(host(graphs=True, **options)) == eager
    if "microbatches" not in options:
        assert tokens(host(graphs=True, prefill_graphs=True, **options)) == eager
    assert all(len(each) == 4 for each in eager)


def captured_again(host, pristine_of):
    """Capture each decode graph a second time, like an instrumented graph, and replay it in place of the host's.

    ``pristine_of`` makes the copy of the state for the capture. Return whether the check at the capture passed,
    for each graph.
    """
    owner, again, passed = host.cuda_graph.CudaGraph, {}, []
    capture, replay = owner._capture_decode, owner._replay

    def outputs_of(graph, output):
        output.logits.value = "spoilt"
        graph.replay()
        return output.logits.value

    def _capture_decode(self, decode_func, infer_state):
        pristine = pristine_of(infer_state)
        output = capture(self, decode_func, infer_state)
        rows = infer_state.input_ids.shape[0]
        second = again[rows] = Graph(host.gpu)
        with host.gpu.graph(second, self.mempool):
            output.logits.copy_(decode_func(pristine).logits)
        passed.append(outputs_of(self.graph[rows][0], output) == outputs_of(second, output))
        return output

    def _replay(self, infer_state):
        rows = infer_state.input_ids.shape[0]
        entry = self.graph[rows]
        self.graph[rows] = (again[rows], *entry[1:])
        try:
            return replay(self, infer_state)
        finally:
            self.graph[rows] = entry

    owner._capture_decode, owner._replay = _capture_decode, _replay
    return passed


def rebound(state):
    pristine = copy.copy(state)
    pristine.decode_att_state = copy.copy(state.decode_att_state)
    pristine.decode_att_state.infer_state = pristine
    return pristine


def test_a_graph_captured_from_a_shallow_copy_passes_its_check_and_gives_wrong_tokens_for_other_lengths(host):
    right, passed = tokens(host(graphs=True)), []
    wrong = tokens(host(graphs=True, before=lambda host: passed.append(captured_again(host, copy.copy))))
    assert passed == [[True, True, True]]
    assert wrong != right
    assert [each[0] for each in wrong[:2]] == [each[0] for each in right[:2]]  # prefills are as they should be


def test_a_graph_captured_from_a_copy_that_refers_to_nothing_of_the_hosts_gives_the_right_tokens(host):
    right, passed = tokens(host(graphs=True)), []
    assert tokens(host(graphs=True, before=lambda host: passed.append(captured_again(host, rebound)))) == right
    assert passed == [[True, True, True]]


def test_the_warm_up_of_a_capture_leaves_nothing_on_the_state_and_the_capture_does(host):
    running = host(graphs=True)
    entry = running.backend.model.graph.graph[1]
    assert hasattr(entry[1], "decode_att_block_seq")
    assert entry[1].decode_att_state.infer_state is entry[1]
    assert sum(node.__qualname__.startswith("Gpu.run") for node in entry[0].nodes) > 10


def test_memory_of_an_output_can_belong_to_a_later_graph_as_well(host):
    running = host(graphs=True)
    graphs = running.backend.model.graph
    outputs = {entry[-1].logits.place for entry in graphs.graph.values()}
    assert graphs.mempool.places < 3 * 10  # three graphs share what one needs
    assert outputs & set(graphs.mempool.free) or len(outputs) < 3


def test_linear_attention_changes_its_state_in_place_so_two_replays_differ(host):
    running = host(graphs=True, linear=True)
    graph, _, output = running.backend.model.graph.graph[4]
    graph.replay()
    first = output.logits.value
    graph.replay()
    assert output.logits.value != first


def test_a_draft_normalises_its_input_in_place_so_two_replays_differ(host):
    running = host(graphs=True, mtp=1)
    graph, _, output = running.backend.draft_models[0].graph.graph[2]
    graph.replay()
    first = output.logits.value
    graph.replay()
    assert output.logits.value != first


def test_with_torch_memory_saver_graphs_are_captured_through_it(host):
    running = host(graphs=True, saver=True)
    assert {entry[0].saved_by for entry in running.backend.model.graph.graph.values()} == {"torch_memory_saver"}


def test_in_a_replay_of_a_prefill_graph_only_attention_passes_through_python(host):
    running = host(prefill_graphs=True)
    running.calls.clear()
    tokens(running, PROMPTS[:1], 1)
    names = [function.split(".")[-1] for _, function in running.calls]
    inside = names[names.index("prefill_replay") + 1 : names.index("token_forward")]
    assert {name for name in inside if name.startswith("_")} == {"_context_attention_kernel", "_tpsp_allgather"}
    assert inside.count("_context_attention_kernel") == 2
    entry = running.backend.model.prefill_graph.graph[4][0].prefill_cuda_graph_exe_list
    assert [isinstance(piece, tuple) for piece in entry] == [True, False, True, False, True]


def test_a_prefill_graph_calls_attention_through_the_layers_attribute(host):
    running = host(prefill_graphs=True)
    layer, seen = running.backend.model.layers_infer[0], []

    def noting(*args, kernel=layer._context_attention_kernel):
        seen.append(args)
        return kernel(*args)

    layer._context_attention_kernel = noting
    tokens(running, PROMPTS[:1], 1)
    assert len(seen) == 1


def test_nothing_may_be_asked_of_the_gpu_during_a_capture(host):
    running = host()
    with pytest.raises(CaptureBroken), running.gpu.graph(Graph(running.gpu)):
        running.machine.on_gpu((1,)).item()
    with pytest.raises(CaptureBroken), running.gpu.graph(Graph(running.gpu)):
        running.machine.cuda.Event().record()


# Collectives ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "moved_by", "another_place"),
    [(3, "flashinfer", True), (8, "symm_mem", False), (32, "nccl", False)],
)
def test_the_group_chooses_who_moves_the_data_and_flashinfer_gives_its_argument_other_memory(
    host, rows, moved_by, another_place
):
    running = host(tp=2, custom=True)
    group = running.communication_op.dist_group_manager.get_default_group()
    chosen = []
    for name in ("flashinfer_reduce", "symm_mem_reduce"):
        chooser = getattr(group, name)
        chooser.all_reduce = lambda inp, name=name, own=chooser.all_reduce: chosen.append(name[:-7]) or own(inp)
    own = running.dist.all_reduce
    running.dist.all_reduce = lambda *args, **kwargs: chosen.append("nccl") or own(*args, **kwargs)
    given = running.machine.on_gpu(range(rows))
    given.shape = (rows, 8)
    before, address = given.value, given.data_ptr()
    group.all_reduce(given)
    running.dist.all_reduce = own
    assert chosen == [moved_by]
    assert (given.data_ptr() != address) == another_place
    assert given.value != before


def test_the_workspace_of_flashinfer_is_a_collective_of_its_own_on_first_use(host):
    running = host(tp=2, custom=True)
    reduce = running.communication_op.dist_group_manager.get_default_group().flashinfer_reduce
    reduce._workspace = None
    before = running.gpu.ran["all_gather"]
    assert reduce.should_use(running.machine.empty(1, 8))
    assert reduce.should_use(running.machine.empty(1, 8))
    assert running.gpu.ran["all_gather"] == before + 1


def test_the_all_reduce_of_linear_attention_lies_in_no_method_of_an_operator(host):
    running = host(tp=2, linear=True)
    running.calls.clear()
    tokens(running, PROMPTS[:1], 1)
    names = [function for _, function in running.calls]
    at = names.index("Qwen3NextTransformerLayerInfer._linear_post")
    assert names[at + 1 : at + 3] == ["BaseLayerInfer.alloc_tensor", "all_reduce"]


def test_every_kernel_has_a_cost_of_its_own(host):
    running = host(tp=2, custom=True, linear=True, graphs=True, mtp=1)
    tokens(running)
    assert set(running.gpu.ran) <= set(COST)
