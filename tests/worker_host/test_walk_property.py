"""Property of the walk: for any code of a layer, work that no operator claims is never counted as an operator."""

import importlib.util
import itertools
import random
import types

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightllm_otel.contracts.patch_set import PatchSet
from lightllm_otel.guard import Guard
from lightllm_otel.worker.gpu.boundary_recorder import BoundaryRecorder
from lightllm_otel.worker.gpu.clock import HostClock
from lightllm_otel.worker.gpu.timer import Timer
from lightllm_otel.worker.host import operators
from lightllm_otel.worker.host.slots import TORCH_LEAVES

SLOTS = {"_att_norm": "attn_norm", "_get_qkv": "qkv_proj", "_get_o": "o_proj", "_ffn_norm": "ffn_norm", "_ffn": "ffn"}
HELPERS = 3
HEAD = """
class Base:
    def _plain(self, hidden):
        hidden.add_(hidden)

    def _kept(self, hidden):
        launch("kernel")
"""
SLOT = "    def {name}(self, hidden):\n        launch({name!r})\n        return hidden\n"
SIMPLE = [
    *(f"hidden = self.{name}(hidden)" for name in SLOTS),
    "hidden.add_(hidden)",
    "hidden = hidden + hidden",
    "hidden += hidden",
    "hidden = hidden * 2",
    "hidden = -hidden",
    "mask = hidden > 1",
    "hidden[0] = hidden",
    "hidden = hidden[hidden]",
    "hidden = hidden.to(1)",
    "hidden = hidden.view(-1, 2 * 3)",
    "kernel(hidden)",
    "state.kernel(hidden)",
    "dist.all_reduce(hidden)",
    "Base._plain(self, hidden)",
    "super()._kept(hidden)",
    "self._plain(hidden)",
    "made = [kernel(hidden) for _ in few]",
    "hidden = kernel(hidden) if flip else hidden",
    "hidden = flip and self._ffn(hidden) or hidden",
    "count = 2\ncount += 1",
    "hidden = self._get_o(hidden + hidden)",
    "hidden = self._ffn(self._get_qkv(hidden).to(1))",
    "self.doubled",
    "(lambda: kernel(hidden))()",
]
NESTING = [
    "if flip:",
    "if self.on:",
    "if not self.on:",
    "for _ in few:",
    "while flip:",
    "with context():",
    "try:",
    "def inner():",
]
LEAVING = ["return hidden", "break", "continue"]


def indented(lines):
    return ["    " + line for line in lines]


@st.composite
def body(draw, depth, helper, in_loop=False):
    """Return the lines of a function. ``helper``: the first of the methods that it may call."""
    lines = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.integers(0, 9))
        if kind < 6 or depth == 0:
            lines += draw(st.sampled_from(SIMPLE)).split("\n")
        elif kind == 6 and helper < HELPERS:
            lines.append(f"hidden = self._h{draw(st.integers(helper, HELPERS - 1))}(hidden, state)")
        elif kind == 7:
            leaving = draw(st.sampled_from(LEAVING if in_loop else LEAVING[:1]))
            lines += ["if flip:", *indented([*draw(body(depth - 1, helper, in_loop)), leaving])]
        else:
            lines += nested(draw, depth, helper, in_loop)
    return lines


def nested(draw, depth, helper, in_loop):
    head = draw(st.sampled_from(NESTING))
    loops = in_loop or head.startswith(("for", "while"))
    if head == "def inner():":
        own = [line for line in draw(body(0, helper)) if "super()" not in line]
        return ["def inner(hidden):", *indented([*own, "return hidden"]), "hidden = inner(hidden)"]
    lines = [head, *indented(draw(body(depth - 1, helper, loops)))]
    if head == "try:":
        lines += indented(["risky(hidden)", *draw(body(0, helper, in_loop))])
        lines += ["except ValueError:", *indented(draw(body(0, helper, in_loop)))]
        lines += ["finally:", *indented(draw(body(0, helper)))] if draw(st.booleans()) else []
    elif draw(st.booleans()) and not head.startswith("with"):
        lines += ["else:", *indented(draw(body(depth - 1, helper, in_loop)))]
    return lines


@st.composite
def sources(draw):
    """Return the source of a module with the class ``Layer``."""
    lines = [HEAD, "class Layer(Base):", "    on = True", "    def _kept(self, hidden):\n        hidden.add_(hidden)\n"]
    lines += ["    @property", "    def doubled(self):", "        launch('kernel')", "        return 2"]
    lines += [SLOT.format(name=name) for name in SLOTS]
    for helper in range(HELPERS):
        lines += [
            f"    def _h{helper}(self, hidden, state):",
            *indented(indented([*draw(body(1, helper + 1)), "return hidden"])),
        ]
    for entry in ("context_forward", "token_forward"):
        lines += [
            f"    def {entry}(self, hidden, state, weight):",
            *indented(indented([*draw(body(2, 0)), "return hidden"])),
        ]
    return "\n".join(lines) + "\n"


class Run:
    """Forward of a model with two such layers, which writes all of its calls down."""

    def __init__(self, module, seed):
        self.random, self.calls, self.recorder = random.Random(seed), [], None
        dist = types.ModuleType("dist")
        for leaf in TORCH_LEAVES:
            setattr(dist, leaf.name, lambda *args, name=leaf.name: self.launch(name))
        run = self

        class Hidden:
            def __getitem__(self, at):
                run.launch("kernel" if isinstance(at, Hidden) else "nothing")
                return self

            def __setitem__(self, at, value):
                run.launch("copy")

        for name, said in (("__add__", "add"), ("__iadd__", "add"), ("add_", "add"), ("__mul__", "kernel"), ("__neg__", "kernel"),
                           ("__gt__", "kernel"), ("to", "copy"), ("view", "nothing")):  # fmt: skip
            setattr(Hidden, name, lambda self, *args, said=said: (run.launch(said), self)[1])

        class Flip:
            def __bool__(self):
                return run.random.random() < 0.45

        class Few:
            def __iter__(self):
                return iter(range(run.random.randrange(3)))

        class Context:
            def __enter__(self):
                run.launch("kernel")

            def __exit__(self, *exception):
                run.launch("kernel")

        def risky(hidden):
            run.launch("kernel")
            if Flip():
                raise ValueError

        vars(module).update(
            launch=self.launch, kernel=lambda hidden: (self.launch("kernel"), hidden)[1], dist=dist, flip=Flip(), few=Few(),
            context=Context, risky=risky,
        )  # fmt: skip
        self.state = types.SimpleNamespace(kernel=lambda hidden: self.launch("kernel"))
        self.hidden, self.dist = Hidden(), dist
        layers = [module.Layer() for _ in range(2)]
        for layer in layers:
            layer.on = self.random.random() < 0.5
        pre = types.SimpleNamespace(token_forward=lambda hidden: self.launch("embedding"))
        post = types.SimpleNamespace(token_forward=lambda hidden: self.launch("lm_head"))
        self.model = types.SimpleNamespace(pre_infer=pre, layers_infer=layers, post_infer=post)
        self.timer = Timer(HostClock(), types.SimpleNamespace(fits=4096))
        self.patch_set, guard = PatchSet(), Guard(strict=True)
        operators.install(self.model, self.timer, self.patch_set, guard)
        transport = operators.Transport(lambda: "nccl")
        operators.install_collectives(dist, TORCH_LEAVES, self.timer, self.patch_set, guard, transport)

    def launch(self, name):
        if self.recorder is not None and name != "nothing":
            self.calls.append((name, len(self.recorder.codes)))

    def forward(self, entry):
        """Return (launched work, the operator that it was counted as)."""
        self.calls, self.recorder = [], Recorder(self.timer)
        self.timer.recorder = self.recorder
        hidden = self.hidden
        self.model.pre_infer.token_forward(hidden)
        for layer in self.model.layers_infer:
            hidden = getattr(layer, entry)(hidden, self.state, None)
        self.model.post_infer.token_forward(hidden)
        self.timer.recorder = None
        assert self.recorder.context == -1
        return [(name, self.timer.boundary_codes.name(self.recorder.codes[at])) for name, at in self.calls]


class Recorder(BoundaryRecorder):
    def __init__(self, timer):
        super().__init__(1 << 20)
        self.codes.append(timer.gap)

    def record(self, code):
        self.codes.append(code)


MAY_BE = {
    **{name: {operator} for name, operator in SLOTS.items()},
    "embedding": {"embedding"},
    "lm_head": {"lm_head"},
    "all_reduce": {"all_reduce"},
    "add": {"residual", "other"},
    "copy": {"residual", "other"},
    "kernel": {"other"},
}
_numbers = itertools.count()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(source=sources(), seed=st.integers(0, 1000))
def test_no_work_is_counted_as_an_operator_that_it_is_not(tmp_path_factory, source, seed):
    number = next(_numbers)
    path = tmp_path_factory.mktemp("layers") / f"layer_{number}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    run = Run(module, seed)
    try:
        for entry in ("context_forward", "token_forward") * 4:
            wrong = [(name, operator) for name, operator in run.forward(entry) if operator not in MAY_BE[name]]
            assert wrong == [], source
    finally:
        run.patch_set.undo()
