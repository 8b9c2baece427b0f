"""Work between the operators of a layer, read from its code."""

import functools

import pytest

from lightllm_otel.records.vocabulary import Operator
from lightllm_otel.worker.host import between
from lightllm_otel.worker.host.between import COPY, read

METHODS = frozenset(("_att_norm", "_get_qkv", "_get_o", "_ffn"))
RESIDUAL, ATTENTION, OTHER = Operator.RESIDUAL, Operator.ATTENTION, Operator.OTHER
cuda = torch = dist = flag = None  # names that the code below uses


class Base:
    factor, heads = 3, 2

    def __init__(self):
        self.scale, self.is_moe, self.tp_world_size_ = 2, False, 2
        self.bound = functools.partial(Base._inlined, self)

    def _att_norm(self, hidden): ...

    def _get_qkv(self, hidden): ...

    def _get_o(self, hidden): ...

    def _ffn(self, hidden): ...

    def _inlined(self, hidden):
        hidden.add_(hidden)

    def _need(self):
        raise NotImplementedError

    def _attend(self, hidden):
        return self._get_o(hidden)


def lead(body, base=Base, **options):
    """Return the work between ``_get_o`` and ``_ffn`` in a layer whose forward is ``body``."""
    layer = type("Layer", (base,), {"token_forward": body})()
    return between.claimed(
        read(layer, METHODS, frozenset(("norm_weight_",)), ["token_forward"], **options).before["_ffn"]
    )


def nothing(self, hidden, state, weight):
    """Views, allocations, numbers and plain Python."""
    o = self._get_o(hidden)
    assert o is not None, "no output"
    q = o.view(-1, self.heads * self.scale + 1, (self.scale + self.factor) // 2)
    k, v = q.split([self.scale, self.scale], dim=-1)
    rows = self.scale * 2 + len(k) + q.shape[0] + int(self.factor)
    out = self.alloc_tensor((rows, q.shape[-1] // 2), dtype=q.dtype)
    if self.tp_world_size_ > 1 and isinstance(out, list):
        out = out[0]
    print(out[:, 0:2], v[self.scale])
    self._ffn(out)


def adds(self, hidden, state, weight):
    hidden.add_(self._get_o(hidden).view(-1, self.scale))
    self._ffn(hidden)


def plus(self, hidden, state, weight):
    hidden = hidden + self._get_o(hidden)
    self._ffn(hidden)


def plus_in_place(self, hidden, state, weight):
    hidden += self._get_o(hidden)
    self._ffn(hidden)


def converts(self, hidden, state, weight):
    self._ffn(self._get_o(hidden).to(torch.bfloat16))


def adds_and_converts(self, hidden, state, weight):
    hidden.add_(self._get_o(hidden).float())
    self._ffn(hidden)


def multiplies(self, hidden, state, weight):
    self._ffn(self._get_o(hidden) * 2)


def gathers_rows(self, hidden, state, weight):
    self._ffn(self._get_o(hidden)[state])


def fills(self, hidden, state, weight):
    hidden[:, 0] = self._get_o(hidden)
    self._ffn(hidden)


def calls_a_weight(self, hidden, state, weight):
    self._ffn(weight.other_norm_(self._get_o(hidden)))


def calls_a_kernel(self, hidden, state, weight):
    cuda(self._get_o(hidden))
    self._ffn(hidden)


def calls_what_was_chosen(self, hidden, state, weight):
    (cuda, torch)[flag](self._get_o(hidden))
    self._ffn(hidden)


def attends(self, hidden, state, weight):
    o = state.decode_att_state1.decode_att(q=self._get_o(hidden), k=None, v=None)
    self._ffn(o)


def attends_and_adds(self, hidden, state, weight):
    hidden.add_(state.decode_att_state1.decode_att(q=self._get_o(hidden)))
    self._ffn(hidden)


def in_a_method(self, hidden, state, weight):
    self._inlined(self._get_o(hidden))
    self._ffn(hidden)


def in_a_partial(self, hidden, state, weight):
    self.bound(self._get_o(hidden))
    self._ffn(hidden)


def through_the_class(self, hidden, state, weight):
    Base._inlined(self, self._get_o(hidden))
    self._ffn(hidden)


def in_a_function(self, hidden, state, weight):
    def add(other):
        hidden.add_(other)

    add(self._get_o(hidden))
    self._ffn(hidden)


def of_another_object(self, hidden, state, weight):
    state._inlined(self._get_o(hidden))
    self._ffn(hidden)


def never_returns(self, hidden, state, weight):
    self._get_o(hidden)
    self._need()
    self._ffn(hidden)


def in_one_branch(self, hidden, state, weight):
    o = self._get_o(hidden)
    if state.is_prefill:
        hidden.add_(o)
    self._ffn(hidden)


def in_a_branch_that_the_layer_rules_out(self, hidden, state, weight):
    o = self._get_o(hidden)
    if self.is_moe:
        cuda(o)
    if not self.is_moe:
        hidden.add_(o)
    self._ffn(hidden)


def in_a_loop(self, hidden, state, weight):
    o = self._get_o(hidden)
    for _ in range(self.scale):
        hidden.add_(o)
    self._ffn(hidden)


def in_a_condition(self, hidden, state, weight):
    o = self._get_o(hidden)
    self._ffn(cuda(o) if flag else o)


def in_a_context(self, hidden, state, weight):
    with torch.autocast():
        self._get_o(hidden)
    self._ffn(hidden)


def in_a_context_of_torch(self, hidden, state, weight):
    with torch.no_grad():
        self._get_o(hidden)
    self._ffn(hidden)


def in_a_handler(self, hidden, state, weight):
    o = self._get_o(hidden)
    try:
        hidden.add_(o)
    except RuntimeError:
        cuda(o)
    self._ffn(hidden)


def after_an_early_return(self, hidden, state, weight):
    o = self._get_o(hidden)
    if flag:
        cuda(o)
        return o
    return self._ffn(o)


def in_a_comprehension(self, hidden, state, weight):
    outs = [cuda(each) for each in self._get_o(hidden)]
    self._ffn(outs)


def while_something_holds(self, hidden, state, weight):
    o = self._get_o(hidden)
    while flag:
        cuda(o)
    self._ffn(o)


EXPECTED = {
    None: (nothing, after_an_early_return, in_a_context_of_torch),
    RESIDUAL: (
        adds, plus, plus_in_place, adds_and_converts, in_a_method, in_a_partial, through_the_class, in_a_function, in_one_branch,
        in_a_branch_that_the_layer_rules_out, in_a_loop,
    ),
    ATTENTION: (attends,),
    OTHER: (
        converts, multiplies, gathers_rows, fills, calls_a_weight, calls_a_kernel, calls_what_was_chosen, attends_and_adds,
        of_another_object, never_returns, in_a_condition, in_a_context, in_a_handler, in_a_comprehension, while_something_holds,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("body", "expected"),
    [(body, expected) for expected, bodies in EXPECTED.items() for body in bodies],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_what_lies_between_two_operators_is_named(body, expected):
    assert lead(body) is expected


def test_an_inherited_forward_is_followed_through_super():
    class Middle(Base):
        def token_forward(self, hidden, state, weight):
            hidden.add_(self._get_o(hidden))
            return hidden

    class Top(Middle):
        def token_forward(self, hidden, state, weight):
            return self._ffn(super().token_forward(hidden, state, weight))

    found = read(Top(), METHODS, frozenset(), ["token_forward"])
    assert found.before["_ffn"] == {RESIDUAL}
    assert found.first == {"_get_o"}


def test_a_call_that_goes_round_the_wrapper_is_unknown():
    """``super()._get_o`` is not the attribute of the instance that is wrapped."""

    class Top(Base):
        def token_forward(self, hidden, state, weight):
            return self._ffn(super()._get_o(self._att_norm(hidden)))

    class HasBody(Base):
        def _get_o(self, hidden):
            return cuda(hidden)

    top = type("Both", (Top, HasBody), {})()
    assert between.claimed(read(top, METHODS, frozenset(), ["token_forward"]).before["_ffn"]) is OTHER


def mark_cost_time(name):
    """LightLLM's decorator, which does not set ``__wrapped__``."""

    def around(function):
        def inner(*args, **kwargs):
            return function(*args, **kwargs)

        return inner

    return around


def quantised(function):
    @functools.wraps(function)
    def inner(*args):
        return cuda(function(*args))

    return inner


def test_lightllms_decorator_is_looked_through():
    class Layer(Base):
        @mark_cost_time("attention")
        def _rest(self, hidden):
            hidden.add_(self._get_o(hidden))

        def token_forward(self, hidden, state, weight):
            self._rest(hidden)
            self._ffn(hidden)

    assert read(Layer(), METHODS, frozenset(), ["token_forward"]).before["_ffn"] == {RESIDUAL}


def test_a_decorator_that_nobody_knows_may_do_anything():
    class Layer(Base):
        @quantised
        def _rest(self, hidden):
            self._get_o(hidden)

        def token_forward(self, hidden, state, weight):
            self._rest(hidden)
            self._ffn(hidden)

    assert read(Layer(), METHODS, frozenset(), ["token_forward"]).before["_ffn"] == {"@quantised"}


def test_a_property_of_the_layers_may_do_anything():
    class Layer(Base):
        @property
        def rotated(self):
            return cuda(self)

        def token_forward(self, hidden, state, weight):
            self._get_o(hidden)
            self._ffn(self.rotated)

    assert read(Layer(), METHODS, frozenset(), ["token_forward"]).before["_ffn"] == {"rotated"}


def test_code_that_does_not_come_to_an_end_is_not_followed():
    class Layer(Base):
        def token_forward(self, hidden, state, weight):
            self._twice(hidden)
            self._ffn(hidden)

    def twice(self, hidden):
        self._twice(hidden)
        self._twice(hidden)
        self._twice(hidden)

    Layer._twice = twice
    twice.__name__ = "_twice"
    assert read(Layer(), METHODS, frozenset(), ["token_forward"]).unread == "token_forward is too long to analyse"


class TestCollectives:
    class Layer(Base):
        def token_forward(self, hidden, state, weight):
            o = self._get_o(hidden)
            if self.tp_world_size_ > 1:
                dist.all_reduce(o, group=state.dist_group)
            hidden.add_(o)
            hidden = self._ffn(hidden)
            cuda(hidden)
            dist.all_reduce(hidden)
            return hidden

    def test_what_lies_before_a_collective_is_named_by_the_operator_before_it(self):
        found = read(self.Layer(), METHODS, frozenset(), ["token_forward"])
        assert found.collectives == {"_get_o": frozenset(), "_ffn": {"cuda"}}

    def test_behind_a_collective_there_is_nothing_yet(self):
        found = read(self.Layer(), METHODS, frozenset(), ["token_forward"])
        assert found.left == frozenset()
        assert found.before["_ffn"] == {RESIDUAL}


class TestForwards:
    def layer(self, prefill, decode):
        return type("Layer", (Base,), {"context_forward": prefill, "token_forward": decode})()

    def test_work_that_only_one_forward_has_is_named_in_both(self):
        found = read(self.layer(adds, nothing), METHODS, frozenset(), ["context_forward", "token_forward"])
        assert between.claimed(found.before["_ffn"]) is RESIDUAL

    def test_work_that_is_another_operators_in_each_forward_is_nobodys(self):
        found = read(self.layer(adds, converts), METHODS, frozenset(), ["context_forward", "token_forward"])
        assert between.claimed(found.before["_ffn"]) is OTHER
        assert COPY in found.before["_ffn"]

    def test_what_a_prefill_does_while_it_is_captured_is_not_looked_at(self):
        def instrumented(self, hidden, state, weight):
            o = self._get_o(hidden)
            if torch.cuda.is_current_stream_capturing():
                cuda(o)
            self._ffn(o)

        found = read(self.layer(instrumented, nothing), METHODS, frozenset(), ["context_forward"])
        assert found.before["_ffn"] == frozenset()

    def test_a_branch_may_ask_its_own_platform_whether_it_captures(self):
        def instrumented(self, hidden, state, weight):
            o = self._get_o(hidden)
            if self.platform.graph.is_capturing():
                cuda(o)
            self._ffn(o)

        found = read(self.layer(instrumented, nothing), METHODS, frozenset(), ["context_forward"])
        assert found.before["_ffn"] == frozenset()

    def test_a_decode_that_is_captured_is(self):
        def instrumented(self, hidden, state, weight):
            o = self._get_o(hidden)
            if torch.cuda.is_current_stream_capturing():
                cuda(o)
            self._ffn(o)

        found = read(self.layer(nothing, instrumented), METHODS, frozenset(), ["token_forward"])
        assert found.before["_ffn"] == {"cuda"}

    def test_forwards_that_a_layer_does_not_have_are_left_out(self):
        found = read(self.layer(adds, adds), METHODS, frozenset(), ["splitfuse_forward", "token_forward"])
        assert found.before["_ffn"] == {RESIDUAL}

    def test_one_that_only_raises_says_nothing(self):
        def refuses(self, hidden, state, weight):
            raise NotImplementedError

        found = read(self.layer(refuses, adds), METHODS, frozenset(), ["context_forward", "token_forward"])
        assert found.before == {"_get_o": frozenset(), "_ffn": {RESIDUAL}}
        assert read(self.layer(refuses, refuses), METHODS, frozenset(), ["token_forward"]).unread

    def test_methods_that_call_each_other_end(self):
        class Round(Base):
            def token_forward(self, hidden, state, weight):
                self.token_forward(hidden, state, weight)
                self._ffn(hidden)

        assert between.claimed(read(Round(), METHODS, frozenset(), ["token_forward"]).before["_ffn"]) is OTHER
