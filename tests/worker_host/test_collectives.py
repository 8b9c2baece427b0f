"""Collectives: the time before a call does not belong to it, and the record names the library that moved the data."""

import gc
import threading
import types
import weakref

import pytest

from lightllm_otel.contracts.patch_set import PatchSet
from lightllm_otel.guard import Guard
from lightllm_otel.records.vocabulary import Implementation, Operator, Site
from lightllm_otel.worker.gpu.boundaries import unpack
from lightllm_otel.worker.gpu.boundary_recorder import BoundaryRecorder
from lightllm_otel.worker.gpu.clock import HostClock
from lightllm_otel.worker.gpu.timer import Timer
from lightllm_otel.worker.host import operators
from lightllm_otel.worker.host.slots import GROUP_LEAVES, TORCH_LEAVES

BYTES = 48


class Tensor:
    def __init__(self, data=None):
        self.data = data

    def numel(self):
        return BYTES // 2

    def element_size(self):
        return 2


class Recorder(BoundaryRecorder):
    def __init__(self, timer):
        super().__init__(4096)
        self.codes.append(timer.gap)
        self.thread = threading.get_ident()

    def record(self, code):
        self.codes.append(code)


class FlashInfer:
    """Library that returns the sum in new memory. Its first call creates a workspace, with a collective of its own."""

    def __init__(self, dist):
        self.dist, self.ready = dist, False

    def should_use(self, tensor):
        if not self.ready:
            self.dist.all_gather([Tensor()], Tensor())
            self.ready = True
        return True

    def all_reduce(self, tensor):
        return object()


class SymmMem:
    def should_use(self, tensor):
        return True

    def all_reduce(self, tensor):
        return None


class Layer:
    """Layer with two operators, each followed by a collective outside of it, the second one not directly."""

    def __init__(self, group, between=lambda hidden: None):
        self.group, self.between = group, between

    def _get_o(self, hidden, state, weight):
        return hidden

    def _ffn(self, hidden, state, weight):
        self.group.all_reduce(hidden)
        return hidden

    def token_forward(self, hidden, state, weight):
        o = self._get_o(hidden, state, weight)
        self.group.all_reduce(o)
        state.add_(o)
        o = self._ffn(hidden, state, weight)
        self.between(o)
        self.group.all_reduce(o)
        state.add_(o)
        self.group.all_reduce(o)
        return o


class Host:
    """Host with torch's collectives, LightLLM's group, and a model with one layer."""

    def __init__(self, library=None):
        self.dist, self.calls = types.ModuleType("dist"), []

        def collective(name):
            def call(tensor, *others, group=None, async_op=False):
                self.calls.append(name)
                if getattr(tensor, "broken", False):
                    raise RuntimeError("the host's own error")

            return call

        for leaf in TORCH_LEAVES:
            setattr(self.dist, leaf.name, collective(leaf.name))
        dist = self.dist

        class Group:
            flashinfer_reduce = symm_mem_reduce = None

            def all_reduce(self, input_):
                if self.flashinfer_reduce is not None and self.flashinfer_reduce.should_use(input_):
                    input_.data = self.flashinfer_reduce.all_reduce(input_)
                elif self.symm_mem_reduce is not None and self.symm_mem_reduce.should_use(input_):
                    self.symm_mem_reduce.all_reduce(input_)
                elif library is None:
                    dist.all_reduce(input_, group=None)

        self.group_class, self.group = Group, Group()
        if library == "flashinfer":
            self.group.flashinfer_reduce = FlashInfer(self.dist)
        if library == "symm_mem":
            self.group.symm_mem_reduce = SymmMem()
        self.layer = Layer(self.group)
        self.model = types.SimpleNamespace(pre_infer=None, post_infer=None, layers_infer=[self.layer])


class Measured:
    """Host with hooks, and a forward that is recorded."""

    def __init__(self, host, strict=True):
        self.host, self.patch_set, self.guard = host, PatchSet(), Guard(strict=strict)
        self.timer = Timer(HostClock(), types.SimpleNamespace(fits=4096))
        self.transport = operators.Transport(lambda: "nccl")
        arguments = (self.timer, self.patch_set, self.guard)
        operators.install(host.model, *arguments)
        operators.install_collectives(host.dist, TORCH_LEAVES, *arguments, self.transport)
        operators.install_collectives(host.group_class, GROUP_LEAVES, *arguments, self.transport)
        self.providers = operators.install_providers(host.group, *arguments, self.transport)
        self.recorder = None

    def run(self, call=None):
        """Return the boundaries of a forward: operator, and the site of a collective."""
        self.timer.recorder = self.recorder = Recorder(self.timer)
        try:
            (call or (lambda: self.host.layer.token_forward(Tensor(), Add(), None)))()
        finally:
            self.timer.recorder = None
        return [self.name(code) for code in self.recorder.codes[1:]]

    def name(self, code):
        boundary = self.timer.boundary_codes.boundary(code)
        return f"{boundary.operator} {boundary.site}" if boundary.site is not Site.NONE else str(boundary.operator)

    @property
    def moved(self):
        return [
            (payload, str(Implementation.of(how)))
            for payload, how in (unpack(packed) for _, packed in self.recorder.payloads)
        ]


class Add:
    def add_(self, other): ...


@pytest.fixture
def measured():
    made = []

    def measure(*args, **kwargs):
        made.append(Measured(*args, **kwargs))
        return made[-1]

    yield measure
    for each in made:
        each.patch_set.undo()


def test_what_lies_before_a_collective_is_never_the_collectives(measured):
    assert measured(Host()).run() == [
        "gap",  # the layer's first operator begins
        "o_proj", "all_reduce attention",  # directly, as the layer's code says
        "residual", "ffn", "all_reduce ffn", "ffn",  # cut out of its operator
        "other", "all_reduce ffn",  # behind a call that nothing claims
        "other", "all_reduce ffn",  # behind another collective: nobody knows
    ]  # fmt: skip


def test_a_collective_behind_an_add_is_not_at_the_site_of_the_operator_before(measured):
    class AddsFirst(Layer):
        def token_forward(self, hidden, state, weight):
            state.add_(self._get_o(hidden, state, weight))
            self.group.all_reduce(hidden)

    host = Host()
    host.layer = AddsFirst(host.group)
    host.model.layers_infer = [host.layer]
    assert measured(host).run() == ["gap", "o_proj", "residual", "all_reduce"]


def test_a_collective_before_the_first_operator_has_the_gap_before_it(measured):
    host = Host()
    each = measured(host)
    assert each.run(lambda: host.dist.all_to_all_single(Tensor(), Tensor())) == ["gap", "all_to_all"]


def test_a_collective_inside_an_inner_operator_is_at_the_site_of_the_outer_one(measured):
    """DeepSeek 3.2 selects the tokens to attend to inside its attention."""
    host = Host()

    class Indexer:
        def _get_indices(self, hidden):
            host.dist.all_gather_into_tensor(Tensor(), hidden)
            return hidden

    class Sparse(Layer):
        def __init__(self, group):
            super().__init__(group)
            self.indexer = Indexer()

        def _token_attention_kernel(self, hidden, state, weight):
            return self.indexer._get_indices(hidden)

        def token_forward(self, hidden, state, weight):
            return self._ffn(self._token_attention_kernel(hidden, state, weight), state, weight)

    host.model.layers_infer = [Sparse(host.group)]
    host.layer = host.model.layers_infer[0]
    assert measured(host).run()[:6] == ["gap", "attention", "other", "all_gather attention", "other", "attention"]


@pytest.mark.parametrize("leaf", TORCH_LEAVES, ids=lambda leaf: leaf.name)
def test_every_collective_of_torchs_is_told_apart(measured, leaf):
    host = Host()
    assert measured(host).run(lambda: getattr(host.dist, leaf.name)(Tensor(), Tensor()))[-1] == leaf.operator.value


class TestLibraries:
    @pytest.mark.parametrize(
        ("library", "named"),
        [(None, "nccl"), ("flashinfer", "flashinfer"), ("symm_mem", "symm_mem"), ("vllm", "custom")],
    )
    def test_a_collective_says_who_moved_the_data_and_how_much(self, measured, library, named):
        each = measured(Host(library))
        each.run()
        assert each.moved == [(BYTES, named)] * 4

    def test_a_workspace_that_is_made_meanwhile_is_no_collective_of_its_own(self, measured):
        host = Host("flashinfer")
        each = measured(host)
        each.run()
        assert host.calls == ["all_gather"]
        assert len(each.recorder.payloads) == 4

    def test_the_libraries_that_a_group_has_are_found(self, measured):
        assert [measured(Host(library)).providers for library in (None, "flashinfer", "symm_mem")] == [
            [], ["flashinfer_reduce"], ["symm_mem_reduce"],
        ]  # fmt: skip

    def test_the_groups_of_lightllm_are_asked_for_theirs(self, measured, monkeypatch):
        torch_distributed = pytest.importorskip("torch.distributed")
        host, made = Host("flashinfer"), PatchSet()
        module = types.ModuleType("lightllm_fake_communication_op")
        module.dist_group_manager = types.SimpleNamespace(groups=[host.group])
        monkeypatch.setitem(operators.sys.modules, module.__name__, module)
        host.group_class.__module__ = module.__name__
        before = torch_distributed.all_reduce
        operators.install_all_collectives(
            host.group_class, Timer(HostClock(), types.SimpleNamespace(fits=4096)), made, Guard(strict=True)
        )
        assert "all_reduce" in vars(host.group.flashinfer_reduce)
        made.undo()
        assert "all_reduce" not in vars(host.group.flashinfer_reduce)
        assert torch_distributed.all_reduce is before

    def test_the_tensor_is_not_kept(self, measured):
        """FlashInfer gives it new memory. A reference to the previous memory would keep it from being reused."""
        host, tensors = Host("flashinfer"), [Tensor()]
        gone = weakref.ref(tensors[0])
        measured(host).run(lambda: host.group.all_reduce(tensors[0]))
        assert tensors.pop().data is not None
        gc.collect()
        assert gone() is None

    def test_the_payload_is_that_of_before_the_call(self, measured):
        host = Host("flashinfer")
        host.group.flashinfer_reduce.all_reduce = lambda tensor: setattr(tensor, "numel", lambda: 10**9)
        each = measured(host)
        each.run(lambda: host.group.all_reduce(Tensor()))
        assert each.moved == [(BYTES, "flashinfer")]

    def test_what_is_not_a_tensor_has_no_payload(self, measured):
        host = Host()
        each = measured(host)
        each.run(lambda: host.dist.all_reduce("a string"))
        each.run(lambda: host.dist.all_reduce(object()))
        assert each.moved == [(0, "nccl")]


class TestThreads:
    def test_a_collective_of_another_thread_is_not_recorded_and_changes_nothing(self, measured):
        """Weights are updated while a forward is measured."""
        host = Host("flashinfer")
        each = measured(host)

        def with_another_thread():
            each.recorder.context, each.recorder.in_collective = -1, True
            other = threading.Thread(target=lambda: (host.dist.all_reduce(Tensor()), host.group.all_reduce(Tensor())))
            each.transport.how = Implementation.CUSTOM
            other.start()
            other.join()
            each.recorder.in_collective = False

        assert each.run(with_another_thread) == []
        assert each.transport.how is Implementation.CUSTOM
        assert host.calls == ["all_reduce", "all_gather"]


class TestFailures:
    def test_the_hosts_exception_passes_and_the_boundaries_go_on(self, measured):
        host = Host()
        each = measured(host)
        broken = Tensor()
        broken.broken = True

        def twice():
            with pytest.raises(RuntimeError, match="the host's own error"):
                host.group.all_reduce(broken)
            host.group.all_reduce(Tensor())

        assert each.run(twice) == ["gap", "all_reduce", "other", "all_reduce"]
        assert not each.recorder.in_collective

    def test_an_error_of_ours_does_not_reach_the_host(self, measured):
        host = Host()
        each = measured(host, strict=False)

        def failing():
            each.recorder.record = lambda code: 1 / 0
            host.group.all_reduce(Tensor())

        each.run(failing)
        assert host.calls == ["all_reduce"]
        assert sum(each.guard.errors) > 0

    def test_a_payload_that_raises_does_not_reach_the_host(self, measured):
        class Lazy(Tensor):
            def numel(self):
                raise RuntimeError("not yet")

        host = Host()
        each = measured(host, strict=False)
        each.run(lambda: host.group.all_reduce(Lazy()))
        assert host.calls == ["all_reduce"]
        assert not each.recorder.in_collective


def test_all_to_all_is_a_collective():
    assert Operator.ALL_TO_ALL in {leaf.operator for leaf in TORCH_LEAVES}
