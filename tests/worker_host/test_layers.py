"""Layers as LightLLM builds them, and unknown ones: they are found and wrapped, or left alone."""

import dataclasses
import functools
import types

import pytest

from lightllm_otel.contracts.patch_set import PatchSet
from lightllm_otel.guard import Guard
from lightllm_otel.worker.gpu.boundary_recorder import BoundaryRecorder
from lightllm_otel.worker.gpu.clock import HostClock
from lightllm_otel.worker.gpu.timer import Timer
from lightllm_otel.worker.host import operators
from lightllm_otel.worker.host.layers import layers_of, replaceable


class Recorder(BoundaryRecorder):
    def __init__(self, timer):
        super().__init__(4096)
        self.codes.append(timer.gap)

    def record(self, code):
        self.codes.append(code)


class Layer:
    """Layer of the template."""

    def _att_norm(self, hidden, state, weight):
        return ["att_norm"]

    def _get_qkv(self, hidden, state, weight):
        return ["qkv"]

    def _post_cache_kv(self, kv, state, weight):
        return None

    def _token_attention_kernel(self, q, state, weight):
        return ["attention"]

    def _get_o(self, hidden, state, weight):
        return ["o"]

    def _ffn_norm(self, hidden, state, weight):
        return ["ffn_norm"]

    def _ffn(self, hidden, state, weight):
        return ["ffn"]

    def token_forward(self, hidden, state, weight):
        normed = self._att_norm(hidden, state, weight)
        q = self._get_qkv(normed, state, weight)
        self._post_cache_kv(None, state, weight)
        o = self._token_attention_kernel(q, state, weight)
        hidden.add_(self._get_o(o, state, weight))
        hidden.add_(self._ffn(self._ffn_norm(hidden, state, weight), state, weight))
        return hidden


class Hidden(list):
    def add_(self, other):
        self.append(other)


def model_of(*layers, **parts):
    return types.SimpleNamespace(pre_infer=None, post_infer=None, layers_infer=list(layers), **parts)


def timer():
    return Timer(HostClock(), types.SimpleNamespace(fits=4096))


@pytest.fixture
def install():
    """Return ``install(model)`` → (operators that were found, names of the operators of a forward through all layers)."""
    patch_sets = []

    def installed(model, guard=None):
        made, patch_set = timer(), PatchSet()
        patch_sets.append(patch_set)
        found = operators.install(model, made, patch_set, guard or Guard(strict=True))

        def run():
            made.recorder = recorder = Recorder(made)
            for layer in model.layers_infer:
                layer.token_forward(Hidden(), None, getattr(model, "weights", None))
            made.recorder = None
            return [made.boundary_codes.name(code) for code in recorder.codes[1:]]

        return found, run

    yield installed
    for patch_set in patch_sets:
        patch_set.undo()


DENSE = ["attn_norm", "qkv_proj", "kv_write", "attention", "o_proj", "residual", "ffn_norm", "ffn"]


def test_a_layer_has_a_second_boundary_only_where_something_lies_between(install):
    found, run = install(model_of(Layer(), Layer()))
    assert run() == ["gap", *DENSE, "residual", *DENSE]
    assert set(found.layers) == {"Layer"}
    assert found.layers["Layer"]["layers"] == 2
    assert sorted(found.layers["Layer"]["operators"]) == sorted(DENSE)
    assert not {"missing", "other", "unread"} & set(found.layers["Layer"])


def test_an_add_at_the_end_of_a_layer_is_one_of_its_operators(install):
    class Parallel(Layer):
        def token_forward(self, hidden, state, weight):
            hidden.add_(self._ffn(self._ffn_norm(hidden, state, weight), state, weight))
            return hidden

    found, run = install(model_of(Parallel(), Parallel()))
    assert run() == ["gap", "ffn_norm", "ffn", "residual", "ffn_norm", "ffn"]
    assert "residual" in found.layers["Parallel"]["operators"]


class TestRowsInTheirOrder:
    def test_the_cache_is_written_by_the_copy_where_there_is_one(self, install):
        class OfJuly(Layer):
            def _post_cache_kv(self, kv, state, weight):
                return self._copy_kv_to_mem_cache(kv, None, None)

            def _copy_kv_to_mem_cache(self, buffer, index, manager):
                return None

        layer = OfJuly()
        _, run = install(model_of(layer))
        assert run() == ["gap", *DENSE]
        assert "_copy_kv_to_mem_cache" in vars(layer)
        assert "_post_cache_kv" not in vars(layer)

    def test_a_row_that_the_layer_does_not_call_gives_way_to_the_next(self, install):
        class WithARelic(Layer):
            def _copy_kv_to_mem_cache(self, buffer, index, manager):
                raise AssertionError("nobody calls this any more")

        layer = WithARelic()
        _, run = install(model_of(layer))
        assert run() == ["gap", *DENSE]
        assert "_post_cache_kv" in vars(layer)

    def test_a_cache_that_is_written_without_a_function_of_the_layers_has_a_boundary_behind_it(self, install):
        class Direct(Layer):
            _post_cache_kv = None

            def token_forward(self, hidden, state, weight):
                q = self._get_qkv(self._att_norm(hidden, state, weight), state, weight)
                self.mem_manager.operator.copy_kv_to_mem_manager(q)
                return self._token_attention_kernel(q, state, weight)

        layer = Direct()
        layer.mem_manager = types.SimpleNamespace(operator=types.SimpleNamespace(copy_kv_to_mem_manager=lambda q: None))
        found, run = install(model_of(layer))
        assert run() == ["gap", "attn_norm", "qkv_proj", "kv_write", "attention"]
        assert found["kv_write"] == operators.INSTALLED
        assert found["o_proj"] == operators.MISSING


class TestUnknownWork:
    def test_what_nothing_claims_is_other_and_not_its_neighbours(self, install):
        class WithMore(Layer):
            def token_forward(self, hidden, state, weight):
                normed = self._att_norm(hidden, state, weight)
                hadamard(normed)
                q = self._get_qkv(normed, state, weight)
                self._post_cache_kv(None, state, weight)
                o = self._get_o(self._token_attention_kernel(q, state, weight), state, weight)
                hidden.add_(o)
                hadamard(hidden)
                return self._ffn(self._ffn_norm(hidden, state, weight), state, weight)

        found, run = install(model_of(WithMore(), WithMore()))
        layer = ["attn_norm", "other", "qkv_proj", "kv_write", "attention", "o_proj", "other", "ffn_norm", "ffn"]
        assert run() == ["gap", *layer, *layer]
        assert found.layers["WithMore"]["other"] == ["hadamard", "residual"]

    class Compiled(Layer):
        """Layer whose source is missing."""

        token_forward = types.FunctionType(
            Layer.token_forward.__code__.replace(co_filename="<frozen>", co_firstlineno=1), globals()
        )

    def test_a_layer_whose_source_is_not_there_has_a_start_for_every_operator(self, install):
        found, run = install(model_of(self.Compiled()))
        operators_alone = [name for name in DENSE if name != "residual"]
        assert run() == [name for each in operators_alone for name in ("other", each)]
        assert found.layers["Compiled"]["unread"] == ["the source of token_forward cannot be read"]

    def test_behind_such_a_layer_nothing_is_known_either(self, install):
        _, run = install(model_of(self.Compiled(), Layer()))
        assert run()[-9:] == ["other", *DENSE]

    def test_a_layer_that_calls_its_operators_in_a_way_that_is_not_seen_has_them_told_apart(self, install):
        class Indirect(Layer):
            def token_forward(self, hidden, state, weight):
                for name in ("_att_norm", "_get_qkv", "_token_attention_kernel", "_ffn"):
                    getattr(self, name)(hidden, state, weight)

        _, run = install(model_of(Indirect()))
        assert run() == ["other", "attn_norm", "other", "qkv_proj", "other", "attention", "other", "ffn"]

    def test_code_that_we_do_not_understand_is_code_that_we_do_not_know(self, install, monkeypatch):
        monkeypatch.setattr("lightllm_otel.worker.host.between.read", lambda *args: 1 / 0)
        found, run = install(model_of(Layer()))
        assert run()[:4] == ["other", "attn_norm", "other", "qkv_proj"]
        assert "ZeroDivisionError" in found.layers["Layer"]["unread"][0]


def hadamard(tensor):
    return tensor


class TestWeightsThatAreCalled:
    class Norm:
        def __init__(self):
            self._forward = self._cuda_forward

        def _cuda_forward(self, hidden):
            return hidden

        def __call__(self, hidden):
            return self._forward(hidden)

    class Gemma(Layer):
        def token_forward(self, hidden, state, weights):
            normed = weights.pre_feedforward_layernorm_weight_(hidden)
            hidden.add_(weights.post_feedforward_layernorm_weight_(self._ffn(normed, state, weights)))
            return hidden

    def weights(self):
        return types.SimpleNamespace(
            pre_feedforward_layernorm_weight_=self.Norm(), post_feedforward_layernorm_weight_=self.Norm()
        )

    def test_a_norm_that_is_called_as_an_object_is_the_layers_norm(self, install):
        weights = self.weights()
        found, run = install(model_of(self.Gemma(), trans_layers_weight=[weights], weights=weights))
        assert run() == ["gap", "ffn_norm", "ffn", "ffn_norm"]
        assert found["ffn_norm"] == operators.INSTALLED

    def test_one_whose_calls_cannot_be_seen_is_other(self, install):
        weights = self.weights()
        weights.pre_feedforward_layernorm_weight_ = lambda hidden: hidden
        _, run = install(model_of(self.Gemma(), trans_layers_weight=[weights], weights=weights))
        assert run() == ["other", "ffn", "ffn_norm"]

    def test_weights_of_layers_that_do_not_call_them_are_left_alone(self, install):
        weights = self.weights()
        before = dict(vars(weights.pre_feedforward_layernorm_weight_))
        install(model_of(Layer(), trans_layers_weight=[weights]))
        assert dict(vars(weights.pre_feedforward_layernorm_weight_)) == before


class TestObjectsThatAreNotLikeOthers:
    def test_a_layer_with_slots_is_left_alone(self, install):
        class Slotted:
            __slots__ = ("_ffn",)

            def __init__(self):
                self._ffn = lambda hidden, state, weight: ["ffn"]

            def token_forward(self, hidden, state, weight):
                return self._ffn(hidden, state, weight)

        layer = Slotted()
        ffn, guard = layer._ffn, Guard()
        found, run = install(model_of(layer), guard)
        assert run() == []
        assert layer._ffn is ffn
        assert found["ffn"] == operators.MISSING
        assert not any(guard.errors)

    def test_a_property_is_left_alone(self, install):
        class WithProperty(Layer):
            calls = 0

            @property
            def _ffn(self):
                type(self).calls += 1
                return lambda hidden, state, weight: ["ffn"]

        layer, guard = WithProperty(), Guard()
        found, run = install(model_of(layer), guard)
        assert layer.calls == 0
        assert "ffn" not in run()
        assert found.layers["WithProperty"]["missing"] == ["ffn"]
        assert not any(guard.errors)

    def test_what_lies_behind_an_operator_that_is_left_alone_is_other(self, install):
        class WithProperty(Layer):
            @property
            def _get_o(self):
                return lambda hidden, state, weight: ["o"]

        _, run = install(model_of(WithProperty()))
        assert run()[4:6] == ["attention", "other"]

    @pytest.mark.parametrize("kind", [staticmethod, classmethod])
    def test_static_and_class_methods_are_wrapped_on_the_instance(self, install, kind):
        def ffn(*args):
            return len(args)

        layer = type("Layer", (Layer,), {"_ffn": kind(ffn)})()
        expected = layer._ffn(1, 2, 3)
        _, run = install(model_of(layer))
        assert run()[-1] == "ffn"
        assert layer._ffn(1, 2, 3) == expected

    @pytest.mark.parametrize("value", [None, 3, "name", []], ids=str)
    def test_an_attribute_that_cannot_be_called_is_no_operator(self, install, value):
        layer = Layer()
        layer._router_logits = layer._ffn_dense = value
        _, run = install(model_of(layer))
        assert layer._ffn_dense is value
        assert run()[-1] == "ffn"

    def test_a_partial_and_a_c_function_are_wrapped(self, install):
        layer = Layer()
        layer._ffn = functools.partial(Layer._ffn, layer)
        layer._get_o = max
        _, run = install(model_of(layer))
        assert layer._get_o(3, 1) == 3
        assert run.__name__ == "run"
        assert layer._ffn(None, None, None) == ["ffn"]

    def test_an_object_that_does_not_let_itself_be_changed_is_left_alone(self, install):
        @dataclasses.dataclass(frozen=True)
        class Frozen:
            name: str = ""

            def _ffn(self, hidden, state, weight):
                return ["ffn"]

            def token_forward(self, hidden, state, weight):
                return self._ffn(hidden, state, weight)

        guard = Guard()
        found, run = install(model_of(Frozen()), guard)
        assert run() == []
        assert found["ffn"] == operators.MISSING
        assert not any(guard.errors)

    def test_an_object_without_a_class_of_its_own_is_wrapped(self, install):
        layer = types.SimpleNamespace(_ffn=lambda *args: args)
        found, _ = install(model_of(layer))
        assert found["ffn"] == operators.INSTALLED
        assert layer._ffn(1, 2) == (1, 2)

    def test_an_object_that_answers_to_every_name_keeps_its_answers(self, install):
        class Anything:
            def __getattr__(self, name):
                if name.startswith("__"):
                    raise AttributeError(name)
                return lambda *args: name

        model = model_of(Layer())
        model.pre_infer = Anything()
        install(model)
        assert model.pre_infer.context_forward(1) == "context_forward"

    def test_an_attribute_that_raises_does_not_end_the_start(self, install):
        class Broken:
            def __getattr__(self, name):
                raise RuntimeError("not ready")

        model, guard = model_of(Layer()), Guard()
        model.pre_infer = Broken()
        _, run = install(model, guard)
        assert run() == ["gap", *DENSE]
        assert not any(guard.errors)

    def test_a_layer_that_is_there_twice_is_wrapped_once(self, install):
        layer = Layer()
        _, run = install(model_of(layer, layer))
        assert run() == ["gap", *DENSE] * 2
        assert not hasattr(layer._ffn.__wrapped__, "__wrapped__")

    def test_a_layer_of_two_models_is_measured_for_the_one_whose_forward_runs(self, install):
        shared = Layer()
        (_, first), (_, second) = install(model_of(shared)), install(model_of(shared))
        assert first() == second() == ["gap", *DENSE]
        assert first() == ["gap", *DENSE]

    def test_classes_take_python_functions_only(self):
        class Group:
            partial = functools.partial(max, 1)
            c_function = max

            def method(self): ...

            @staticmethod
            def static(): ...

            @classmethod
            def of_class(cls): ...

        class Derived(Group): ...

        for owner in (Group, Derived):
            taken = {
                name
                for name in ("partial", "c_function", "method", "static", "of_class", "absent")
                if replaceable(owner, name)
            }
            assert taken == {"method"}


def test_every_wrapper_is_gone_when_it_is_undone(install):
    layer = Layer()
    before = dict(vars(layer))
    made, patch_set = timer(), PatchSet()
    operators.install(model_of(layer), made, patch_set, Guard(strict=True))
    assert dict(vars(layer)) != before
    patch_set.undo()
    assert dict(vars(layer)) == before


def test_a_model_without_layers_has_none():
    assert [layer.number for layer in layers_of(types.SimpleNamespace())] == [-1, -1]
