"""Rules that keep instrumented graphs safe, on a fake GPU that breaks if one of them is violated."""

import types

import fake_gpu
import fake_host
import hooks
import pytest
from fake_host import COST, LAYER_SECONDS, LAYERS, CaptureBroken, InferReq, ModelInput, answer

from lightllm_otel.contracts.fits import Fits
from lightllm_otel.contracts.patch_set import PatchSet
from lightllm_otel.guard import Guard
from lightllm_otel.otel_environment import OtelEnvironment
from lightllm_otel.records.vocabulary import DropReason, Feature, Mode, Operator, Stage, StepOnlyReason
from lightllm_otel.settings import Settings
from lightllm_otel.worker.host import decode_call, graph_cost, instrumented_graphs
from lightllm_otel.worker.host.cuda_graph_support import unsupported
from lightllm_otel.worker.host.instrumented_graph import InstrumentedGraph
from lightllm_otel.worker.host.warmup_inputs import other_inputs


def ask(rpc, batch=1, context=8, value=0):
    """Run one decode step, and return the server's answer."""
    rpc.waiting.append((ModelInput(batch, context, False, value=value), [InferReq(8)] * batch))
    return rpc.decode()


def right(batch=1, context=8, value=0):
    return answer(ModelInput(batch, context, False, value=value))


def replays(host):
    """Return how many graphs have been replayed since the last call."""
    count = len(host.gpu.replayed)
    host.gpu.replayed.clear()
    return count


# What a sampled step shows -----------------------------------------------------------------------------------------------


def test_a_sampled_step_replays_the_instrumented_graph_and_has_every_operator_in_exact_time(serve):
    _, session, rpc = serve(kvargs="graphs", tp=2)
    ask(rpc, batch=3)
    step, intervals = session.kept.steps[-1]
    assert Mode.of(int(step["mode"])) is Mode.GRAPH
    assert (step["batch"], step["padded"]) == (3, 4)
    seconds = session.kept.seconds()
    assert seconds.pop("gap") == [COST["between"]]
    assert seconds == {
        "embedding": [COST["embedding"]],
        **LAYER_SECONDS,
        "all_reduce": [COST["all_reduce"]] * (1 + 2 * LAYERS),
        "all_gather": [COST["all_reduce"]],
        "lm_head": [2 * COST["lm_head"]],
        "sampling": [COST["sample"]],
    }
    assert intervals["seconds"].sum() == step["seconds"] == step["closure_seconds"]
    reduces = intervals[intervals["operator"] == Operator.ALL_REDUCE.code]
    assert reduces["payload_bytes"].tolist() == [4 * 8 * 2] * 5


def test_all_other_steps_replay_the_hosts_own_graph_untouched(serve):
    host, session, rpc = serve(kvargs="graphs", every=10**9)
    plain = {size: entry[0] for size, entry in rpc.model.graph.graph.items()}
    host.gpu.replayed.clear()
    session.forwards.complete()  # number 0 is a multiple of everything
    for _ in range(20):
        assert ask(rpc, batch=2) == right(batch=2)
    assert host.gpu.replayed == [plain[2]] * 20
    assert {size: entry[0] for size, entry in rpc.model.graph.graph.items()} == plain


def test_an_instrumented_graphs_own_cost_is_learned_on_the_hosts_graph_and_subtracted(serve):
    _, session, rpc = serve(kvargs="graphs", timestamp_cost=2**-20)
    assert session.timer.step_reader.timestamp_calibration.boundary_cost == 2**-20
    ask(rpc)
    step, _ = session.kept.steps[-1]
    assert session.kept.seconds()["ffn"] == [COST["ffn"]] * LAYERS
    assert step["overhead_seconds"] > 0


def test_kernels_that_start_sooner_behind_programmatic_dependencies_are_no_shorter_for_it(serve, monkeypatch):
    """Each ffn of the host's own graph takes longer by its dependency, which hides a third of the timestamps' cost."""
    import fakes

    saving, counted = 2**-19, []

    class Edges(fakes.FakeGraphs):
        def __init__(self, gpu):
            super().__init__(gpu)
            self.edges = lambda: sum(name == "ffn" for name in counted)

        def capture(self, pool, body):
            counted.clear()
            return super().capture(pool, body)

        def seconds(self, graph):
            plain = isinstance(graph, graph_cost.ReplayOnce) and not isinstance(graph._graph, InstrumentedGraph)
            return super().seconds(graph) + plain * saving * LAYERS

    monkeypatch.setattr(fakes, "FakeGraphs", Edges)
    run = fake_gpu.Gpu.run

    def counting(gpu, name, *more, **rest):
        counted.append(name)
        run(gpu, name, *more, **rest)

    monkeypatch.setattr(fake_gpu.Gpu, "run", counting)
    _, session, _ = serve(kvargs="graphs", timestamp_cost=2**-20)
    calibration = session.timer.step_reader.timestamp_calibration
    (instrumented, *_) = session.instrumented_graphs.by_size.values()
    assert sum(instrumented.graph_layout.programmatic) == LAYERS
    assert (calibration.boundary_cost, calibration.edge_saving) == (2**-20, saving)
    costs = calibration.costs(len(instrumented.graph_layout.codes) - 1, -1, instrumented.graph_layout.programmatic)
    names = operators_of(session, instrumented)[1:]
    assert dict(zip(names, costs)) | {"ffn": 0} == dict.fromkeys(names, 2**-20) | {"ffn": 0}
    assert costs[names.index("ffn")] == 2**-20 - saving


def test_dependencies_that_only_the_smallest_graph_has_are_learned_from_it(serve, monkeypatch):
    """cuBLAS splits products of few rows: the largest graph, from which costs are learned, may have no dependency."""
    import fakes

    saving, counted, batches = 2**-19, [], []

    class Edges(fakes.FakeGraphs):
        def capture(self, pool, body):
            counted.clear()
            return super().capture(pool, body)

        def programmatic_edges(self):
            return sum(name == "ffn" for name in counted) if batches[-1] == 1 else 0

        def seconds(self, graph):
            plain = isinstance(graph, graph_cost.ReplayOnce) and not isinstance(graph._graph, InstrumentedGraph)
            return super().seconds(graph) + (plain and batches[-1] == 1) * saving * LAYERS

    capture_again = instrumented_graphs.InstrumentedGraphs._capture_again

    def capturing(self, owner, batch, decode):
        batches.append(batch)
        return capture_again(self, owner, batch, decode)

    monkeypatch.setattr(instrumented_graphs.InstrumentedGraphs, "_capture_again", capturing)
    monkeypatch.setattr(fakes, "FakeGraphs", Edges)
    run = fake_gpu.Gpu.run

    def counting(gpu, name, *more, **rest):
        counted.append(name)
        run(gpu, name, *more, **rest)

    monkeypatch.setattr(fake_gpu.Gpu, "run", counting)
    _, session, _ = serve(kvargs="graphs", timestamp_cost=2**-20)
    calibration = session.timer.step_reader.timestamp_calibration
    dependencies = {
        batch: sum(each.graph_layout.programmatic) for batch, each in session.instrumented_graphs.by_size.items()
    }
    assert len(dependencies) > 1
    assert {batch for batch, many in dependencies.items() if many} == {1}
    assert (calibration.boundary_cost, calibration.edge_saving) == (2**-20, saving)


def test_where_the_cost_on_branches_cannot_be_measured_nothing_is_given_back(serve, monkeypatch):
    import fakes

    def fails(*args):
        raise MemoryError("CUDA out of memory")

    counts = iter(range(10**6))
    seconds = fakes.FakeGraphs.seconds

    def slower_plain(graphs, graph):
        plain = isinstance(graph, graph_cost.ReplayOnce) and not isinstance(graph._graph, InstrumentedGraph)
        return seconds(graphs, graph) + plain * 2**-16

    monkeypatch.setattr(fakes.FakeGraphs, "seconds", slower_plain)
    monkeypatch.setattr(graph_cost, "cost_on_branches", fails)
    monkeypatch.setattr(fakes.FakeGraphs, "programmatic_edges", lambda graphs: next(counts))
    _, session, rpc = serve(kvargs="graphs", strict=False)
    assert session.instrumented_graphs.state == "armed"
    assert session.timer.step_reader.timestamp_calibration.edge_saving == 0.0
    assert ask(rpc) == right()


def operators_of(session, instrumented):
    return [session.timer.boundary_codes.name(code) for code in instrumented.graph_layout.codes]


def test_from_nccls_first_kernel_on_timestamps_are_on_the_chain_where_branches_would_come_late(serve):
    _, session, _ = serve(kvargs="graphs", tp=2)
    (smallest,) = (
        each
        for batch, each in session.instrumented_graphs.by_size.items()
        if batch == min(session.instrumented_graphs.by_size)
    )
    first = operators_of(session, smallest).index("all_reduce")
    assert smallest.graph_layout.chained
    assert smallest.graph_layout.chained_from == first
    assert session.timestamps.chained == [at >= first for at in range(len(smallest.graph_layout.codes))]
    assert session.instrumented_graphs.facts()["timestamps"] == "fake, fake, on the chain because of NCCL"


def test_a_graph_of_the_hosts_own_all_reduce_has_its_timestamps_on_a_branch_up_to_the_gather_of_nccl(serve):
    _, session, _ = serve(kvargs="graphs", tp=2, host_options={"custom": True})
    instrumented = session.instrumented_graphs.by_size[min(session.instrumented_graphs.by_size)]
    assert instrumented.graph_layout.chained_from == operators_of(session, instrumented).index("all_gather")
    assert not instrumented.graph_layout.chained


@pytest.mark.parametrize(("tp", "environ"), [(1, {}), (2, {"NCCL_GRAPH_MIXING_SUPPORT": "0"})])
def test_all_timestamps_are_on_a_branch_where_nccl_leaves_nothing_behind_its_kernels(serve, tp, environ):
    _, session, _ = serve(kvargs="graphs", tp=tp, environ=environ)
    assert {each.graph_layout.chained_from for each in session.instrumented_graphs.by_size.values()} == {-1}
    assert not any(session.timestamps.chained)
    assert session.instrumented_graphs.facts()["timestamps"] == "fake, fake"


def test_what_a_timestamp_on_the_chain_costs_is_learned_apart_from_one_on_a_branch(serve):
    _, session, rpc = serve(kvargs="graphs", tp=2, timestamp_cost=2**-20)
    calibration = session.timer.step_reader.timestamp_calibration
    assert (calibration.boundary_cost, calibration.chained_cost) == (0.0, 2**-20)
    ask(rpc)
    assert session.kept.seconds()["ffn"] == LAYER_SECONDS["ffn"]


def test_the_operators_of_an_instrumented_graph_are_named_once_for_all_that_are_alike(serve):
    _, session, _ = serve(kvargs="graphs", tp=2)
    (names,) = session.instrumented_graphs.operators()
    assert {len(each.graph_layout.codes) - 1 for each in session.instrumented_graphs.by_size.values()} == {len(names)}
    assert names.count("ffn") == LAYERS
    assert names.count("all_reduce") == 1 + 2 * LAYERS


def test_sizes_can_be_limited(serve):
    _, session, rpc = serve(kvargs="graphs", environ={"LIGHTLLM_OTEL_GRAPH_BATCH_SIZES": "2-3"})
    assert sorted(session.instrumented_graphs.by_size) == [2]
    ask(rpc, batch=4)
    rpc.decode()
    assert session.kept.step_only[StepOnlyReason.NOT_INSTRUMENTED.code] == 1
    ask(rpc, batch=2)
    assert len(session.kept.steps[-1][1]) > 10


# Rule 1: the copy of infer_state that was taken before the plain capture --------------------------------------------------


def test_an_instrumented_graph_computes_again_what_kernels_keep_on_the_state(serve):
    _, session, rpc = serve(kvargs="graphs")
    for context in (8, 40, 12):
        assert ask(rpc, context=context) == right(context=context)
    assert session.instrumented_graphs.state == "armed"


def test_a_graph_that_lacks_a_kernel_is_found_out_on_other_inputs_though_it_is_equal_on_the_first(serve, monkeypatch):
    monkeypatch.setattr(decode_call, "pristine_of", lambda state: state)
    monkeypatch.setattr(fake_host, "copy", copy_module_of_the_host())
    _, session, rpc = serve(kvargs="graphs")
    assert (
        "the outputs for other inputs differ from those of the host's own graph" in session.instrumented_graphs.reason
    )
    assert [ask(rpc, context=context) for context in (8, 40)] == [right(context=8), right(context=40)]


def test_without_that_check_such_a_graph_gives_wrong_answers(serve, monkeypatch):
    monkeypatch.setattr(decode_call, "pristine_of", lambda state: state)
    monkeypatch.setattr(instrumented_graphs.InstrumentedGraphs, "_check_on_other_inputs", lambda *arguments: True)
    monkeypatch.setattr(fake_host, "copy", copy_module_of_the_host())
    _, _, rpc = serve(kvargs="graphs")
    stale = [ask(rpc, context=context) for context in (8, 40)]
    assert stale != [right(context=8), right(context=40)]


def copy_module_of_the_host():
    class Module:
        @staticmethod
        def copy(state):
            new = object.__new__(type(state))
            vars(new).update(vars(state))
            return new

    return Module


# Rule 2: outputs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
def test_the_output_is_where_the_host_reads_it_whether_graphs_share_one_or_not(serve, shared):
    _, session, rpc = serve(kvargs="graphs", host_options={"shared_output": shared})
    assert session.instrumented_graphs.state == "armed"
    assert [ask(rpc, value=value) for value in range(3)] == [right(value=value) for value in range(3)]


def test_an_instrumented_graph_that_writes_its_output_elsewhere_is_found_out_and_never_replayed(serve, monkeypatch):
    import fakes

    monkeypatch.setattr(fakes.FakeGraphs, "deliver", lambda self, made, wanted: False)
    _, session, rpc = serve(kvargs="graphs", host_options={"shared_output": False}, strict=False)
    assert session.instrumented_graphs.state == "refused"
    assert "differ from those of the host's own graph" in session.instrumented_graphs.reason
    assert ask(rpc) == right()
    rpc.decode()
    assert session.kept.step_only[StepOnlyReason.NOT_INSTRUMENTED.code] == 1


@pytest.mark.parametrize(("policy", "state"), [("auto", "refused"), ("force", "armed")])
def test_a_host_whose_own_graph_differs_each_time_needs_force(serve, monkeypatch, policy, state):
    import fakes

    seen = iter(range(1000))
    monkeypatch.setattr(fakes.FakeGraphs, "copy_of", lambda self, outputs: next(seen))
    _, session, _ = serve(kvargs="graphs", environ={"LIGHTLLM_OTEL_GRAPHS": policy})
    assert session.instrumented_graphs.state == state


# Rule 3: the pool -----------------------------------------------------------------------------------------------------


def test_instrumented_graphs_are_captured_in_the_hosts_own_memory_pool(serve):
    _, session, rpc = serve(kvargs="graphs")
    graphs_made = [graph for graph in session.graphs.made if graph.pool is not None]
    assert len(graphs_made) == 3
    assert all(graph.pool is rpc.model.graph.mempool for graph in graphs_made)


# Rule 5: never both ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 3])
def test_each_step_replays_one_graph_and_not_two(serve, every):
    host, _, rpc = serve(kvargs="graphs", every=every)
    host.gpu.replayed.clear()
    for _ in range(30):
        ask(rpc)
        assert replays(host) == 1


# Rule 6: nothing is asked of the GPU during a capture ------------------------------------------------------------------


def test_no_event_is_used_during_a_capture(serve):
    host, session, _ = serve(kvargs="graphs")
    assert len(session.instrumented_graphs.by_size) == 3  # and the fake GPU has not complained
    with pytest.raises(CaptureBroken):
        host.gpu.capture(None, lambda: session.clock.done([0.0]))


# Rule 7: timestamps are those of the step ----------------------------------------------------------------------------------


def test_each_instrumented_graph_was_replayed_at_the_start_before_it_is_read(serve):
    host, session, _ = serve(kvargs="graphs")
    for instrumented in session.instrumented_graphs.by_size.values():
        assert instrumented._graph in host.gpu.replayed


def test_steps_that_are_read_late_keep_their_own_timestamps(serve, now):
    _, session, rpc = serve(kvargs="graphs")
    session.clock.frontier = now[0]
    ffn = COST["ffn"]
    for factor in (1, 2, 3):
        COST["ffn"] = factor * ffn
        ask(rpc)
    COST["ffn"] = ffn
    assert session.kept.steps == []
    session.clock.frontier = float("inf")
    rpc.decode()
    assert [session.kept.seconds(index)["ffn"] for index in range(3)] == [[f * ffn] * LAYERS for f in (1, 2, 3)]


def test_timestamps_that_a_later_replay_took_are_dropped_and_counted_and_the_step_is_kept(serve, now):
    _, session, rpc = serve(kvargs="graphs")
    session.clock.frontier = now[0]
    instrumented = session.instrumented_graphs.by_size[1]
    ask(rpc)
    for _ in range(8):
        instrumented.replay()
    session.clock.frontier = float("inf")
    rpc.decode()
    step, intervals = session.kept.steps[-1]
    assert (len(intervals), step["seconds"] > 0) == (0, True)
    assert session.kept.dropped[DropReason.OVERWRITTEN.code] == 1


def test_an_instrumented_graph_whose_plain_graph_the_host_captures_anew_is_not_replayed_any_more(serve):
    host, session, rpc = serve(kvargs="graphs")
    del rpc.model.graph.graph[1]
    assert ask(rpc) == right()
    host.gpu.replayed.clear()
    assert ask(rpc, value=5) == right(value=5)
    assert host.gpu.replayed == [rpc.model.graph.graph[1][0]]
    assert ask(rpc, batch=2) == right(batch=2)
    assert len(session.kept.steps[-1][1]) > 10  # the others still have theirs


# Rule 8, and what else is refused ---------------------------------------------------------------------------------------


def test_overlapping_microbatches_and_expert_parallelism_are_timed_as_steps_only(serve, monkeypatch):
    _, session, rpc = serve(kvargs="graphs", environ={"MOE_MODE": "EP"})
    assert (session.instrumented_graphs.state, "expert parallelism" in session.instrumented_graphs.reason) == (
        "refused",
        True,
    )
    assert ask(rpc) == right()

    class Overlapping:
        enable_decode_microbatch_overlap = True

    assert "microbatches" in unsupported(Overlapping(), session.fits, {})


@pytest.mark.parametrize(
    ("flag", "reason"), [("enable_ep_moe", "expert"), ("enable_torch_memory_saver", "memory_saver")]
)
def test_a_server_started_with_a_mode_that_is_not_safe_is_timed_as_steps_only(serve, flag, reason):
    _, session, rpc = serve(kvargs="graphs")
    rpc.model.graph.args = types.SimpleNamespace(**{flag: True})
    assert reason in unsupported(rpc.model.graph, session.fits, {})


def test_a_cuda_graph_class_of_another_shape_is_left_alone():
    class CudaGraph:
        graph, mempool = {}, None

        def _capture_decode(self, decode_func, batch):
            return None

    stock = CudaGraph._capture_decode
    session = types.SimpleNamespace(
        guard=Guard(), patch_set=PatchSet(), live=PatchSet(), fits=Fits(), settings=Settings.from_env({}),
        otel_environment=OtelEnvironment.from_env({}), fast_path=None,
    )  # fmt: skip
    hooks.hook(session, basemodel__cuda_graph=types.SimpleNamespace(CudaGraph=CudaGraph))
    assert CudaGraph._capture_decode is stock
    assert "captures or replays in an unknown way" in unsupported(CudaGraph(), session.fits, {})
    assert session.fits.lost() == {Feature.DECODE_GRAPHS: ["operators inside decode graphs are not timed"]}


def test_too_little_memory_is_one_clear_sentence(serve, caplog):
    import fakes

    class Full(fakes.FakeGraphs):
        def free_bytes(self):
            return 100 << 20

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fakes, "FakeGraphs", Full)
        _, session, rpc = serve(kvargs="graphs")
    assert session.instrumented_graphs.state == "refused"
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    (line,) = [
        message for message in messages if "parts of this LightLLM" not in message
    ]  # the fake host lacks some of LightLLM
    assert "100 MiB of GPU memory are free" in line
    assert "LIGHTLLM_OTEL_GRAPH_BATCH_SIZES" in line
    assert ask(rpc) == right()


def test_more_boundaries_than_timestamps_give_no_instrumented_graph(serve):
    _, session, rpc = serve(kvargs="graphs", boundaries=8)
    assert session.instrumented_graphs.state == "refused"
    assert ask(rpc) == right()


def test_a_start_that_fits_only_without_instrumented_graphs_goes_on_without_them(serve):
    _, session, rpc = serve(kvargs="graphs", host_options={"longest_prefill_fails": 1}, strict=False)
    assert (session.instrumented_graphs.state, "longest prefill" in session.instrumented_graphs.reason) == (
        "refused",
        True,
    )
    assert session.graphs.released == 1
    assert ask(rpc) == right()


def test_a_start_that_does_not_fit_at_all_fails_as_it_would_without_us(serve):
    with pytest.raises(RuntimeError, match="check max len infer fail"):
        serve(kvargs="graphs", host_options={"longest_prefill_fails": 2}, strict=False)


def test_the_hosts_graphs_are_not_kept_alive(serve):
    import gc
    import weakref

    _, _, rpc = serve(kvargs="graphs")
    graphs = weakref.ref(rpc.model.graph)
    rpc.model.graph = None
    gc.collect()
    assert graphs() is None


def test_an_exception_in_a_capture_leaves_no_loose_branch(serve, monkeypatch):
    import fakes

    def broken(self, made, wanted):
        raise MemoryError("CUDA out of memory")

    monkeypatch.setattr(fakes.FakeGraphs, "deliver", broken)
    _, session, rpc = serve(kvargs="graphs", strict=False)
    assert session.instrumented_graphs.state == "refused"
    assert session.timestamps.joined >= 1
    assert ask(rpc) == right()


# Failures ---------------------------------------------------------------------------------------------------------------


def test_after_a_failure_the_choice_goes_on_and_only_the_reading_ends(serve):
    host, session, rpc = serve(kvargs="graphs", strict=False)
    plain = rpc.model.graph.graph[1][0]
    ask(rpc)
    session.clock.fails = True
    host.gpu.replayed.clear()
    for value in range(5):
        assert ask(rpc, value=value) == right(value=value)
    assert session.timer.failed
    assert session.guard.errors[Stage.MEASURE.code] == 1
    assert len(host.gpu.replayed) == 5
    assert plain not in host.gpu.replayed  # other ranks replay the instrumented graph, so this one must


def test_timestamps_that_never_came_end_the_reading_and_nothing_else(serve):
    _, session, rpc = serve(kvargs="graphs", strict=False)
    session.timestamps._launched += 1  # as if a replay had been counted that never ran
    assert [ask(rpc) for _ in range(3)] == [right()] * 3
    assert session.timer.failed


def test_the_hosts_exception_in_a_replay_passes_and_its_graph_is_back_in_place(serve):
    _, session, rpc = serve(kvargs="graphs")
    entry = rpc.model.graph.graph[1]
    instrumented = session.instrumented_graphs.by_size[1]

    def broken():
        raise RuntimeError("CUDA error: an illegal memory access")

    instrumented._graph.replay = broken
    with pytest.raises(RuntimeError, match="illegal memory access"):
        ask(rpc)
    assert rpc.model.graph.graph[1] is entry
    assert session.guard.errors == [0] * len(Stage)


def test_a_repeated_forward_makes_the_same_choice(serve):
    host, session, rpc = serve(kvargs="graphs", every=3)
    chosen = []
    for _ in range(30):
        number = session.forwards.completed
        rpc.model.broken = True
        with pytest.raises(RuntimeError):
            ask(rpc)
        rpc.model.broken = False
        due = session.forwards.decode_due
        host.gpu.replayed.clear()
        ask(rpc)
        chosen.append((number, due, host.gpu.replayed[0] is not rpc.model.graph.graph[1][0]))
    assert [number for number, _, _ in chosen] == list(range(30))
    assert all(due == graph_layout for _, due, graph_layout in chosen)
    assert 3 < sum(due for _, due, _ in chosen) < 20


def test_inputs_of_the_warm_up_are_kept_as_they_came_though_the_graph_takes_their_tensors(serve, monkeypatch):
    """LightLLM's graphs read the very tensors of the input that they were captured with, and replays copy others into them."""
    seen = []

    def looked(given, owner, model):
        seen.append((given.b_seq_len.value, given.input_ids.value))
        return others(given, owner, model)

    others = other_inputs
    monkeypatch.setattr(instrumented_graphs, "other_inputs", looked)
    collect = instrumented_graphs.InstrumentedGraphs.collect

    def aliased(self, given):
        collect(self, given)
        given.b_seq_len.value, given.input_ids.value = "overwritten", "overwritten"

    monkeypatch.setattr(instrumented_graphs.InstrumentedGraphs, "collect", aliased)
    serve(kvargs="graphs")
    assert seen == [((2,) * size, 0) for size in (1, 2, 4)]


def test_a_graph_whose_outputs_do_not_depend_on_inputs_proves_nothing(serve, monkeypatch):
    monkeypatch.setattr(instrumented_graphs, "other_inputs", lambda given, owner, model: given)
    _, session, _ = serve(kvargs="graphs")
    assert "the outputs for other inputs" in session.instrumented_graphs.reason


def test_a_batch_size_that_cannot_be_tried_on_other_inputs_is_left_out_and_the_others_are_used(serve, monkeypatch):
    others = other_inputs
    monkeypatch.setattr(
        instrumented_graphs,
        "other_inputs",
        lambda given, *rest: None if given.batch_size == 4 else others(given, *rest),
    )
    _, session, rpc = serve(kvargs="graphs")
    assert (session.instrumented_graphs.state, sorted(session.instrumented_graphs.by_size)) == ("armed", [1, 2])
    assert ask(rpc, batch=4) == right(batch=4)
    monkeypatch.setattr(instrumented_graphs, "other_inputs", lambda *everything: None)
    _, session, _ = serve(kvargs="graphs")
    assert (session.instrumented_graphs.state, session.instrumented_graphs.reason) == (
        "refused",
        "the host's graphs could not be checked on other inputs",
    )


def test_other_inputs_stay_within_what_the_host_is_made_for(serve):
    _, _, rpc = serve(kvargs="graphs")
    given, model = ModelInput(4, 8, False), rpc.model
    made = other_inputs(given, model.graph, model)
    assert made.b_req_idx.value == (0, 1, 2, 3)
    assert max(made.b_seq_len.value) < 4096 == model.req_manager.req_to_token_indexs.shape[1]
    assert len(set(made.b_seq_len.value)) == 4
    assert made.total_token_num == sum(made.b_seq_len.value)
    assert given.b_seq_len.value == (2, 2, 2, 2)  # the host's own is as it was
    model.req_manager.req_to_token_indexs = fake_host.Tensor(
        4, 4096
    )  # as many rows as requests, and one is for padding
    assert other_inputs(given, model.graph, model) is None
    model.req_manager = None
    assert other_inputs(given, model.graph, model) is None
