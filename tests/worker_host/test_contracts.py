"""Rows of the table of contracts: each provides its feature, and nothing else depends on it."""

import types

import fake_host
import fake_host_2026
import fakes
import hooks
import pytest
from fake_gpu import COST

from lightllm_otel.contracts.binding import Arguments
from lightllm_otel.contracts.fits import Fits
from lightllm_otel.contracts.patch_set import PatchSet
from lightllm_otel.contracts.table import FIELDS, HOOKS
from lightllm_otel.guard import Guard
from lightllm_otel.inject.hooks import MAKERS
from lightllm_otel.otel_environment import OtelEnvironment, Sampler
from lightllm_otel.records.vocabulary import Feature, IdleReason, Mode, Operator, Phase, StepOnlyReason
from lightllm_otel.settings import Settings
from lightllm_otel.worker.host import layers

PROMPTS = ((5, 6, 7), tuple(range(40)), (9,))
BY_NAME = {hook.name: hook for hook in HOOKS}


def without(*names):
    return tuple(hook for hook in HOOKS if hook.name not in names)


def served(now, rows=HOOKS, plugin=True, **options):
    """Return (answers, features that were seen) of a server of 2026 with these rows."""
    host = fake_host_2026.make(now, **options)
    session = fakes.FakeSession(host, strict=False, rows=rows).patch() if plugin else None
    host.start()
    answers = []
    for _ in range(2):
        requests = [host.submit(prompt, 5) for prompt in PROMPTS]
        host.run()
        for _ in range(6):
            host.step()
        answers.append([request.out for request in requests])
        now[0] += 1.0
    host.stop()
    found = set()
    if session is not None:
        found = features(session)
        session.undo()
    return answers, found


def features(session):
    steps = session.kept.steps
    found = {Feature.STEPS} if steps else set()
    if any(step["phase"] == Phase.PREFILL.code and step["mode"] == Mode.GRAPH.code for step, _ in steps):
        found.add(Feature.PREFILL_GRAPHS)
    if session.instrumented_graphs.state == "armed" and any(
        step["phase"] == Phase.DECODE.code and (each["operator"] == Operator.FFN.code).any() for step, each in steps
    ):
        found.add(Feature.DECODE_GRAPHS)
    if any((each["operator"] == Operator.SAMPLING.code).any() for _, each in steps):
        found.add(Feature.SAMPLING)
    tail = COST["scatter_token"] + COST["to_cpu"]
    if any(each["seconds"][each["operator"] == Operator.OTHER.code].sum() >= tail for _, each in steps):
        found.add(Feature.STEP_END)
    if any(step["idle_reason"] == IdleReason.NO_REQUESTS.code and step["idle_seconds"] > 0.5 for step, _ in steps):
        found.add(Feature.IDLE)
    return found


ALL = {Feature.STEPS, Feature.PREFILL_GRAPHS, Feature.DECODE_GRAPHS, Feature.SAMPLING, Feature.STEP_END, Feature.IDLE}
SCENE = {"graphs": True, "prefill_graphs": True}


@pytest.fixture(scope="module")
def stock():
    return served([1000.0], plugin=False, **SCENE)[0]


def test_with_all_rows_todays_host_has_all_features(now, stock):
    assert served(now, **SCENE) == (stock, ALL)


@pytest.mark.parametrize("name", ["construction", "forward"])
def test_without_the_model_or_its_forward_nothing_is_measured_and_nothing_breaks(now, stock, name):
    assert served(now, without(name), **SCENE) == (stock, set())


@pytest.mark.parametrize(
    "name",
    ["layers_exist", "graph_warmup", "graph_capture", "graph_replay", "prefill_graph_replay", "sample", "idle_loop"],
)
def test_without_a_row_exactly_its_feature_is_gone(now, stock, name):
    assert served(now, without(name), **SCENE) == (stock, ALL - {BY_NAME[name].feature})


@pytest.mark.parametrize("name", ["end_of_step", "end_of_step_late", "memory_check", "prefill_graph_capture", "groups"])
def test_without_a_row_that_another_stands_in_for_or_that_is_not_needed_here_all_features_stay(now, stock, name):
    assert served(now, without(name), **SCENE) == (stock, ALL)


def test_without_either_end_of_a_step_it_ends_with_sampling(now, stock):
    assert served(now, without("end_of_step", "end_of_step_late"), **SCENE) == (stock, ALL - {Feature.STEP_END})


@pytest.mark.parametrize(
    ("name", "seen"), [(None, True), ("overlap_decode", False), ("overlap_replay", True), ("overlap_prefill", True)]
)
def test_rows_of_microbatches(now, name, seen):
    host = fake_host_2026.make(now, graphs=True, microbatches=True, dp=2)
    session = fakes.FakeSession(host, strict=False, rows=without(name)).patch()
    host.start()
    for prompt in PROMPTS:
        host.submit(prompt, 5)
    host.run()
    for _ in range(6):
        host.step()
    host.stop()
    decodes = [step for step, _ in session.kept.steps if step["phase"] == Phase.DECODE.code and step["batch"] > 1]
    assert bool(decodes) is seen
    if decodes and name is None:
        assert {Mode.of(int(step["mode"])) for step in decodes} >= {Mode.GRAPH}
        assert session.kept.step_only[StepOnlyReason.OVERLAP.code] > 0
    session.undo()


def test_without_the_memory_check_instrumented_graphs_are_not_given_up(now):
    """The host starts only if they are given up. Without the row, it fails as it would without the plugin."""
    for rows, fails in ((HOOKS, False), (without("memory_check"), True)):
        host = fake_host.make(now, longest_prefill_fails=1)
        session = fakes.FakeSession(host, strict=False, rows=rows).patch()
        try:
            host.basemodel.TpPartBaseModel("graphs")
        except RuntimeError:
            assert fails
        else:
            assert not fails
            assert session.instrumented_graphs.by_size == {}
        session.undo()


def test_collectives_of_lightllms_own_need_the_row_of_its_groups(now):
    for rows, seen in ((HOOKS, True), (without("groups"), False)):
        host = fake_host.make(now, tp=2, custom=True)
        session = fakes.FakeSession(host, strict=False, rows=rows).patch()
        rpc = host.model_rpc.ModelRpcServer(host.basemodel.TpPartBaseModel())
        rpc.waiting.append((fake_host.ModelInput(1, 8, False), [fake_host.InferReq(8)]))
        rpc.decode()
        assert (Operator.ALL_REDUCE.value in session.kept.seconds()) is seen
        session.undo()


@pytest.mark.parametrize("name", ["idle_rpc", None])
def test_the_idle_row_of_july_2025(now, name):
    host = fake_host.make(now)
    rows = without(name, "idle_loop")  # that branch's
    session = fakes.FakeSession(host, strict=False, rows=rows).patch()
    rpc = host.model_rpc.ModelRpcServer(host.basemodel.TpPartBaseModel())
    for _ in range(2):
        rpc.waiting.append((fake_host.ModelInput(1, 8, False), [fake_host.InferReq(8)]))
        rpc.decode()
        rpc.decode()
        now[0] += 1.0
    reasons = [IdleReason.of(int(step["idle_reason"])) for step, _ in session.kept.steps]
    assert (IdleReason.NO_REQUESTS in reasons[1:]) is (name is None)
    session.undo()


@pytest.mark.parametrize(
    "row", [hook for hook in HOOKS if hook.feature is Feature.REQUEST_SPANS], ids=lambda hook: hook.name
)
@pytest.mark.parametrize("old", [True, False])
def test_rows_of_requests(tmp_path, row, old):
    """Without a row of this version, its function is not wrapped, and the others are."""
    module = fake_host.make_http(old, None)
    otel_environment = OtelEnvironment(traces=("otlp_proto_http",), sampler=Sampler(0.0))
    session = types.SimpleNamespace(
        guard=Guard(),
        patch_set=PatchSet(),
        live=PatchSet(),
        otel_environment=otel_environment,
        settings=Settings.from_env({}),
        fits=Fits(),
        watches=None,
    )
    hooks.hook(session, without(row.name), httpserver__manager=module)
    for each in HOOKS:
        if each.feature is Feature.REQUEST_SPANS:
            owner, name = each.place.split(".")
            host = vars(getattr(module, owner)).get(name)
            assert hasattr(host, "__wrapped__") is (
                host is not None and each.name != row.name and session.fits.fits(each.name)
            )
    session.patch_set.undo()


def test_every_row_has_a_name_of_its_own_a_maker_and_a_sentence():
    assert len({row.name for row in (*HOOKS, *FIELDS)}) == len(HOOKS) + len(FIELDS)
    assert {hook.maker for hook in HOOKS} - {"grouped"} == set(MAKERS)
    assert all(hook.loses for hook in HOOKS)
    assert not any(row.loses.endswith(".") for row in (*HOOKS, *FIELDS))


# Rows of the slots --------------------------------------------------------------------------------------------------------

SLOTS = {
    (table, slot.names[0]): slot
    for table in ("LAYER_SLOTS", "PRE_SLOTS", "POST_SLOTS")
    for slot in getattr(layers, table)
}


def operator_seconds(now):
    """Return (answers, operator → seconds) of a server of 2026 without graphs, which samples every step."""
    host = fake_host_2026.make(now)
    session = fakes.FakeSession(host, strict=False).patch()
    host.start()
    requests = [host.submit(prompt, 5) for prompt in PROMPTS]
    host.run()
    for _ in range(6):
        host.step()
    host.stop()
    found = {}
    for _, intervals in session.kept.steps:
        for interval in intervals:
            operator = Operator.of(int(interval["operator"]))
            found[operator] = found.get(operator, 0.0) + float(interval["seconds"])
    session.undo()
    return [request.out for request in requests], found


def without_slot(monkeypatch, table, name):
    """Delete the row, and return its operator."""
    slot = SLOTS[table, name]
    monkeypatch.setattr(layers, table, tuple(each for each in getattr(layers, table) if each is not slot))
    return slot.operator


@pytest.mark.parametrize(
    ("table", "name"),
    [
        ("LAYER_SLOTS", "_att_norm"), ("LAYER_SLOTS", "_get_qkv"), ("LAYER_SLOTS", "_get_o"),
        ("LAYER_SLOTS", "_ffn_norm"), ("LAYER_SLOTS", "_ffn"),
        ("PRE_SLOTS", "context_forward"), ("POST_SLOTS", "context_forward"),
    ],
)  # fmt: skip
def test_without_a_row_of_the_slots_exactly_its_operator_is_gone_and_its_time_is_nobody_elses(
    now, monkeypatch, table, name
):
    answers, whole = operator_seconds(now)
    gone = without_slot(monkeypatch, table, name)
    same, rest = operator_seconds(now)
    assert same == answers
    assert set(whole) - set(rest) == {gone}
    nobodys = {gone, Operator.OTHER, Operator.GAP, Operator.RESIDUAL}
    assert {each: rest[each] for each in rest if each not in nobodys} == pytest.approx(
        {each: whole[each] for each in whole if each not in nobodys}
    )
    assert sum(rest.get(each, 0.0) for each in nobodys) == pytest.approx(sum(whole.get(each, 0.0) for each in nobodys))


@pytest.mark.parametrize(
    ("name", "operator"),
    [("_post_cache_kv", Operator.KV_WRITE), ("_context_attention_kernel", Operator.ATTENTION)],
)
def test_what_lightllm_itself_calls_by_a_known_name_stands_in_for_a_row(now, monkeypatch, name, operator):
    """These are the function that writes the cache, and that of the attention state, without the method around them."""
    answers, whole = operator_seconds(now)
    assert without_slot(monkeypatch, "LAYER_SLOTS", name) is operator
    same, rest = operator_seconds(now)
    assert (same, rest) == (answers, pytest.approx(whole))


# Reading by name ----------------------------------------------------------------------------------------------------------


def a(first, second, *, third=3):
    """A function of the host's."""


def b(*args, **kwargs):
    """Another, of which nothing is known."""


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [((1, 2), {}, 2), ((1,), {"second": 2}, 2), ((1,), {}, None), ((), {}, None), ((1, 2), {"third": 4}, 2)],
)
def test_an_argument_is_found_by_name_wherever_the_call_gives_it(args, kwargs, expected):
    assert Arguments(a).get("second", args, kwargs) == expected


def test_a_default_counts_and_an_unknown_name_reads_as_none():
    assert Arguments(a).get("third", (1, 2), {}) == 3
    assert Arguments(a).get("fourth", (1, 2), {}) is None
    assert Arguments(b).get("first", (1, 2), {"first": 5}) == 5
    assert Arguments(b).get("first", (1, 2), {}) is None


def test_arguments_are_given_in_the_order_of_the_signature():
    assert list(Arguments(a).given((1,), {"third": 5, "second": None}).items()) == [
        ("first", 1),
        ("second", None),
        ("third", 5),
    ]


def test_a_row_fits_if_all_names_of_one_alternative_are_parameters():
    assert Arguments(a).fits(())
    assert Arguments(a).fits((("fourth",), ("first", "third")))
    assert not Arguments(a).fits((("first", "fourth"),))
