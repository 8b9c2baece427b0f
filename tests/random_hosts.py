"""Hosts that nobody has seen: one of the two miniatures of LightLLM, with changes to its source.

``outcome(variant)`` is all that a host's clients and its GPU can notice: what a server answers, raises and calls.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import re
import tempfile
from pathlib import Path

import fake_host_2026
import fakes
import host_changes
import host_sources
from fake_gpu import Tensor
from fake_host_2026.turns import Stuck
from host_changes import Change, changes_of, functions_of
from hypothesis import strategies

from lightllm_otel.otel_environment import OtelEnvironment, Sampler

HERE = Path(__file__).parent
# What our hooks are put on, or ask for, by miniature.
HOOKED = {
    "http": ("generate", "_encode", "alloc_req_id", "_wait_to_token_package", "get_all_cared_pids"),
    2025: ("forward", "_init_padded_req", "_check_max_len_infer", "warmup", "_capture_decode", "_replay", "sample", "decode",
           "_try_read_new_reqs", "remove_batch", "all_reduce", "all_gather_into_tensor", "_get_qkv", "_get_o", "_ffn", "_copy_kv",
           "lightllm_capture_graph", "get_chuncked_input_token_len"),
    2026: ("forward", "_init_padded_req", "_check_max_len_infer", "warmup", "_capture_decode", "_replay", "capture_decode",
           "_capture_prefill", "_token_forward", "sample", "_try_read_new_reqs", "_pre_post_handle",
           "notify_post_handle_and_wait_pre_post_handle", "_close_overlap", "microbatch_overlap_decode",
           "microbatch_overlap_prefill", "all_reduce", "all_gather_into_tensor", "should_use", "_get_qkv",
           "_post_cache_kv", "_context_attention_kernel", "_token_attention_kernel", "_get_o", "_ffn", "_linear_in_proj",
           "_linear_post", "prefill_att", "decode_att", "_tpsp_allgather", "_sample_and_scatter_token", "_verify_mtp_v2",
           "copy_for_cuda_graph", "get_chuncked_input_token_len"),
}  # fmt: skip
# Attributes that are read.
READ = {
    "http": ("group_request_id", "req_id_to_out_inf"),
    2025: ("batch_size", "total_token_num", "is_prefill", "input_ids", "graph", "mempool", "cuda_graph_batch_sizes",
           "layers_infer", "pre_infer", "post_infer", "layer_num_", "req_id", "max_len_in_batch", "dist_group", "config"),
    2026: ("batch_size", "total_token_num", "prefix_total_token_num", "is_prefill", "input_ids", "b_is_decode_req", "b_seq_len",
           "b_req_idx", "max_kv_seq_len", "graph", "mempool", "cuda_graph_batch_sizes", "graph_max_len_in_batch", "layers_infer",
           "pre_infer", "post_infer", "layer_num_", "req_id", "cur_kv_len", "decode_att_state", "infer_state", "dist_group",
           "flashinfer_reduce", "symm_mem_reduce", "device_group", "torch_memory_saver", "draft_models", "is_mtp_draft_model",
           "logits", "max_seq_length", "req_manager", "req_to_token_indexs", "prefill_graph"),
}  # fmt: skip
CLASSES = {
    "http": ("HttpServerManager", "ReqStatus"),
    2025: ("TpPartBaseModel", "CudaGraph", "CustomProcessGroup", "ModeBackend"),
    2026: ("TpPartBaseModel", "CudaGraph", "PrefillCudaGraph", "CustomProcessGroup", "ModeBackend", "OverlapEventPack",
           "InferStateInfo", "ModelInput", "ModelOutput"),
}  # fmt: skip
MODULES = {
    "http": ("httpserver", "health_monitor"),
    2025: ("basemodel", "cuda_graph", "communication_op", "post_process", "base_backend", "model_rpc"),
    2026: ("basemodel", "cuda_graph", "prefill_cuda_graph", "communication_op", "generic_post_process", "base_backend",
           "overlap_events"),
}  # fmt: skip
# Names by which this module, or a driver, asks a host for what it needs; they stay.
KEPT = {"make", "serve", "start", "exposed_init_model", "init_model", "replay"}
CLASSES_OF_2025 = {"Pre", "Post", "Layer", "CudaGraph", "CustomProcessGroup", "TpPartBaseModel", "ModeBackend",
                   "ModelRpcServer", "InferReq"}  # fmt: skip
FUNCTIONS_OF_2025 = {"sample", "lightllm_capture_graph", "all_reduce", "all_gather", "all_gather_into_tensor",
                     "reduce_scatter_tensor"}  # fmt: skip


# Functions of the host that change nothing, and that our code may ask beside the host: calls of these are not compared.
QUESTIONS: tuple[str, ...] = ()


@functools.cache
def functions(year):
    if year == 2025:
        own = [(HERE / "fake_host.py").read_text()]
        # Not those that it calls by a name which it puts together.
        return [each for each in functions_of(own, lambda owner, name: owner in CLASSES_OF_2025 or name in FUNCTIONS_OF_2025)
                if not each.name.endswith(("context_forward", "token_forward", "replay"))]  # fmt: skip
    stems = fake_host_2026.HTTP_MODULES if year == "http" else fake_host_2026.MODULES
    own = [(HERE / "fake_host_2026" / f"{stem}.py").read_text() for stem in stems]
    return list(functions_of(own, lambda owner, name: owner not in ("ShmReq", "ShmObjsIOBuffer") and name not in KEPT))


@functools.cache
def changes(year, names=None):
    """Every change to a miniature, or to what has one of these names."""
    found = [change for each in functions(year) for change in changes_of(each)]
    found += [Change("rename", name) for name in CLASSES[year]]
    for name in READ[year]:
        found.append(Change("rename", name, detail="attribute"))
        found += [Change("hollow", name, detail=detail) for detail in ("none", "text", "raises")]
    if year != "http":
        found += [Change("graph_entries", "graph", detail=detail) for detail in ("keys", "object", "reversed")]
    return [each for each in found if names is None or each.name in names]


@dataclasses.dataclass(frozen=True)
class Variant:
    """A host, and what it is asked. ``renamed``: modules that have another name. ``options``: of the miniature's ``make``.

    ``year``: of the miniature, or "http" for the HTTP process of 2026. ``steps``: for 2025 (prefill, batch, context, value,
    broken); for 2026 (prompt's tokens, new tokens, turns until the next); for the HTTP process (prompt, items that its
    client takes, headers). ``broken_after``: the turn after which the host of 2026 raises, or -1; an HTTP process raises in
    every request, unless it is -1.
    """

    year: object
    changes: tuple[Change, ...] = ()
    renamed: tuple[str, ...] = ()
    options: tuple[tuple[str, object], ...] = ()
    steps: tuple[tuple, ...] = ()
    broken_after: int = -1

    def __str__(self) -> str:
        return f"{self.year}: {'; '.join(map(str, self.changes)) or 'as it is'}"

    @property
    def has_graphs(self) -> bool:
        return bool(dict(self.options).get("graphs"))


class Noticed:
    """``answers``: what clients get, or what was raised. The rest is of the time in which the server serves, of the start only
    what a capture does not repeat.
    """

    def __init__(self) -> None:
        self.start, self.answers, self.calls, self.kernels, self.waits, self.replays, self.at_start = (
            "",
            [],
            [],
            {},
            0,
            0,
            [],
        )

    def __eq__(self, other) -> bool:
        return vars(self) == vars(other)

    __hash__ = None

    def difference(self, other) -> str:
        """In words, what is not the same."""
        for name, mine in vars(self).items():
            theirs = vars(other)[name]
            if mine != theirs:
                return f"{name}: {_shortened(mine, theirs)} without us, {_shortened(theirs, mine)} with us"
        return ""


def _shortened(mine, other):
    if isinstance(mine, list):
        at = next((at for at, (one, two) in enumerate(zip(mine, other)) if one != two), min(len(mine), len(other)))
        return f"…{mine[at : at + 3]}"
    return repr(mine)[:300]


def outcome(variant, **session):
    """What is noticed of this host; with ``session`` (see ``fakes.FakeSession``) our hooks are on it."""
    return {2025: _outcome_2025, 2026: _outcome_2026, "http": _outcome_http}[variant.year](variant, session)


def _raised(error):
    return f"{type(error).__name__}: {_without_addresses(error)}"


def _without_addresses(what):
    return re.sub(r"0x[0-9a-f]+", "0x…", str(what))


def _plain(answer):
    """What can be compared with another host's."""
    if isinstance(answer, Tensor):
        return answer.value
    if isinstance(answer, (tuple, list)):
        return [_plain(each) for each in answer]
    return _without_addresses(repr(answer))


def _session(host, session):
    """``clock_fails_after``: so many recordings. ``graphs_fail``: captures of ours do."""
    settings = {"strict": False, **session}
    fails_after, graphs_fail = settings.pop("clock_fails_after", None), settings.pop("graphs_fail", False)
    if fails_after is not None:
        settings["clock"] = _FailingClock(host.now, fails_after)
    made = fakes.FakeSession(host, **settings)
    made.graphs.fails = graphs_fail
    return made


def _hooked(host, session):
    """Our session, if there is to be one."""
    return _session(host, session).patch() if session else None


class _FailingClock(fakes.ManualClock):
    def __init__(self, now, recordings) -> None:
        super().__init__(now)
        self._left = recordings

    def record(self, handle, stream):
        self._left -= 1
        self.fails = self._left < 0
        super().record(handle, stream)


class _Book:
    """Notes what a host does, apart for its start and for the time after it."""

    def __init__(self, host, calls, noticed, compare_start) -> None:
        self._host, self._calls, self._noticed, self._compare_start = host, calls, noticed, compare_start
        self._serves = False

    def started(self) -> None:
        gpu, self._serves = self._host.gpu, True
        if self._compare_start:
            self._noticed.at_start = self._compared()
        self._calls.clear()
        gpu.ran.clear()
        gpu.replayed.clear()
        gpu.waits = 0

    def close(self) -> None:
        gpu, noticed = self._host.gpu, self._noticed
        if not self._serves and not self._compare_start:
            return  # it has failed while graphs were captured, and ours are captured beside them
        noticed.calls, noticed.waits, noticed.replays = self._compared(), gpu.waits, len(gpu.replayed)
        noticed.kernels = {name: count for name, count in gpu.ran.items() if name not in ("", "timestamp")}

    def _compared(self) -> list:
        return [each for each in self._calls if (each if isinstance(each, str) else each[1]) not in QUESTIONS]


def _outcome_2025(variant, session):
    options, calls, noticed = dict(variant.options), [], Noticed()
    kvargs = "graphs" if options.pop("graphs", False) else None
    module = host_sources.load(
        "fake_host", HERE / "fake_host.py", variant.changes, calls.append, **host_changes.NAMESPACE
    )
    host = module.make([1000.0], **options)
    host.renamed = variant.renamed
    book = _Book(host, calls, noticed, not variant.has_graphs)
    made = _hooked(host, session)
    try:
        calls.clear()
        noticed.answers = _plain(module.serve(host, kvargs, variant.steps, book.started))
    except Exception as error:  # noqa: BLE001 - it is compared
        noticed.start = _raised(error)
    finally:
        book.close()
        if made is not None:
            made.undo()
    return noticed


def _outcome_2026(variant, session):
    noticed = Noticed()
    host = fake_host_2026.make(
        [1000.0], changes=variant.changes, namespace=host_changes.NAMESPACE, **dict(variant.options)
    )
    host.renamed = variant.renamed
    book = _Book(host, host.calls, noticed, not variant.has_graphs)
    made = _hooked(host, session)
    requests = []
    try:
        host.start()
        book.started()
        for prompt, new, turns in variant.steps:
            requests.append(host.submit(tuple(range(3, 3 + prompt)), new))
            _take_turns(host, turns, variant.broken_after)
        _take_turns(host, 400, variant.broken_after)
    except Stuck as stuck:
        noticed.answers.append(str(stuck))
    except Exception as error:  # noqa: BLE001 - it is compared
        noticed.start = _raised(error)
    finally:
        noticed.answers += [(name, _raised(error)) for name, error in host.errors] + [each.out for each in requests]
        book.close()
        host.stop()
        if made is not None:
            made.undo()
    return noticed


def _outcome_http(variant, session):
    noticed = Noticed()
    host = fake_host_2026.make_http([1000.0], variant.changes, host_changes.NAMESPACE, **dict(variant.options))
    host.renamed, host.machine.broken = variant.renamed, variant.broken_after >= 0
    with tempfile.TemporaryDirectory() as folder:
        made = _traced(host, session, Path(folder)) if session else None
        try:
            noticed.answers = [asyncio.run(host.httpserver.serve(variant.steps)), host.health_monitor.serve()]
        except Exception as error:  # noqa: BLE001 - it is compared
            noticed.start = _raised(error)
        finally:
            noticed.answers.append(host.machine.events)
            noticed.calls = list(host.calls)
            if made is not None:
                made.undo()
    return noticed


def _traced(host, session, folder):
    """Our session in an HTTP process whose requests are traced."""
    environ = {**session.get("environ", {}), "LIGHTLLM_OTEL_DIR": str(folder)}
    made = _session(host, {**session, "environ": environ})
    made.otel_environment = OtelEnvironment(traces=("otlp_proto_http",), sampler=Sampler(1.0))
    return made.patch()


def _take_turns(host, turns, broken_after):
    for _ in range(turns):
        if not host.busy:
            return
        host.step()
        host.turns_taken = getattr(host, "turns_taken", 0) + 1
        host.machine.broken = host.turns_taken == broken_after


OPTIONS = {
    "http": ({}, {"without": ("nccl_port",)}, {"without": ("port", "model_name")}, {"without": ("nccl_host", "dp", "nnodes")}),
    2025: ({}, {"tp": 2}, {"tp": 2, "custom": True}, {"tp": 2, "tpsp": True}),
    2026: ({}, {"tp": 2, "custom": True}, {"tp": 2, "tpsp": True}, {"mtp": 1}, {"mtp": 2, "eagle": True}, {"mixed": True},
           {"linear": True, "tp": 2}, {"prefill_graphs": True}, {"dp": 2, "others": (0, 1)},
           {"dp": 2, "microbatches": True, "tp": 2}, {"saver": True}, {"asynchronous": True}),
}  # fmt: skip

# Every change once --------------------------------------------------------------------------------------------------------

TRACED = (("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),)
STEPS = {
    "http": (("hello", 9, TRACED), ("too long", 9, TRACED), ("hello", 2, ()), ("", 9, ())),
    2025: ((True, 1, 8, 3, False), (False, 2, 9, 4, False), (False, 1, 30, 5, True), (False, 3, 5, 6, False)),
    2026: ((5, 3, 2), (20, 3, 4)),
}


def every_change(year):
    """Hosts in which all that our hooks know is changed at once, each in another way; until every change was in one."""
    by_name: dict[tuple[str, str], list[Change]] = {}
    for change in changes(year, (*HOOKED[year], *READ[year], *CLASSES[year])):
        if change.kind != "torn":
            by_name.setdefault((change.owner, change.name), []).append(change)
    for number in range(max(map(len, by_name.values()))):
        drawn = tuple(each[number] for each in by_name.values() if number < len(each))
        options = OPTIONS[year][number % len(OPTIONS[year])]
        options = options if year == "http" else {**options, "graphs": number % 4 > 0}
        yield Variant(year, drawn, (), tuple(options.items()), STEPS[year])


# Attributes that are read while the host waits for the GPU's next work, or while it captures.
READ_IN_A_STEP = ("batch_size", "total_token_num", "prefix_total_token_num", "is_prefill", "input_ids", "b_is_decode_req",
                  "b_seq_len", "max_kv_seq_len", "graph", "mempool", "infer_state", "req_id", "logits")  # fmt: skip


def every_unreadable(year, graphs=True):
    """Hosts of which one attribute raises something of its own when it is read by the name that we know."""
    for name in (name for name in READ_IN_A_STEP if name in READ[year]):
        raising = Change("hollow", name, detail="raises")
        yield Variant(year, (raising,), (), () if year == "http" else (("graphs", graphs),), STEPS[year])


# Strategies -----------------------------------------------------------------------------------------------------------------


def _steps(year):
    if year == 2025:
        one = strategies.tuples(strategies.booleans(), strategies.integers(1, 4), strategies.integers(1, 64),
                                strategies.integers(0, 9), strategies.sampled_from((False, False, False, True)))  # fmt: skip
        return strategies.lists(one, min_size=1, max_size=6).map(tuple)
    if year == "http":
        one = strategies.tuples(strategies.sampled_from(("hello", "", "too long")), strategies.integers(1, 5),
                                strategies.sampled_from((TRACED, ())))  # fmt: skip
        return strategies.lists(one, min_size=1, max_size=3).map(tuple)
    one = strategies.tuples(strategies.integers(1, 40), strategies.integers(1, 5), strategies.integers(0, 6))
    return strategies.lists(one, min_size=1, max_size=4).map(tuple)


@strategies.composite
def variants(draw):
    year = draw(strategies.sampled_from((2025, 2026, 2026, "http")))
    hooked, read, classes = HOOKED[year], READ[year], CLASSES[year]
    wanted = strategies.sampled_from(changes(year, (*hooked, *read, *classes)))
    anything = strategies.sampled_from(changes(year))
    drawn = draw(
        strategies.lists(strategies.one_of(wanted, wanted, anything), max_size=4, unique_by=lambda each: each.name)
    )
    options = dict(draw(strategies.sampled_from(OPTIONS[year])))
    if year != "http":
        options["graphs"] = draw(strategies.booleans())
    return Variant(
        year,
        tuple(drawn),
        tuple(draw(strategies.lists(strategies.sampled_from(MODULES[year]), max_size=1))),
        tuple(options.items()),
        draw(_steps(year)),
        draw(strategies.sampled_from((-1, -1, -1, 2, 5))) if year != 2025 else -1,
    )
