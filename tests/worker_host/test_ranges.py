"""NVTX ranges, and the names of the operators' implementations."""

import functools
import types

import fake_host
import pytest

from lightllm_otel.contracts.patch_set import PatchSet
from lightllm_otel.guard import Guard
from lightllm_otel.worker.host import implementations, ranges


@pytest.fixture
def model():
    return fake_host.make([0.0]).basemodel.TpPartBaseModel()


class TestRanges:
    def test_every_operator_of_a_layer_is_in_a_range_of_its_name(self, model):
        said, patch_set = [], PatchSet()
        ranges.install(model, patch_set, Guard(), said.append, lambda: said.append("end"))
        layer = model.layers_infer[1]
        layer._att_norm(fake_host.Tensor(1, 8), None, None)
        assert said == ["attn_norm 1", "end"]
        patch_set.undo()

    def test_the_host_is_called_once_with_its_result_and_its_exception(self):
        calls = []

        def host(value, error=None):
            calls.append(value)
            if error:
                raise error
            return value

        wrapped = ranges.ranged(host, "x", calls.append, lambda: None, Guard())
        assert wrapped(7) == 7
        assert calls == ["x", 7]
        with pytest.raises(KeyError):
            wrapped(8, error=KeyError("host's own"))

    def test_broken_nvtx_is_counted_and_harmless(self):
        def broken(*_):
            raise RuntimeError("no NVTX")

        guard = Guard()
        assert ranges.ranged(lambda: 3, "x", broken, broken, guard)() == 3
        assert sum(guard.errors) > 0

    def test_undo_leaves_nothing(self, model):
        before = {name: value for name, value in vars(model.layers_infer[0]).items() if callable(value)}
        patch_set = PatchSet()
        assert ranges.install(model, patch_set, Guard(), print, print) > 10
        patch_set.undo()
        assert {name: value for name, value in vars(model.layers_infer[0]).items() if callable(value)} == before


class TestImplementations:
    def test_the_function_behind_a_partial_is_named(self, model):
        found = implementations.names(model)
        assert "Layer._token_decode_attention_flashdecoding" in found["attention"]
        assert found["attn_norm"].endswith("Layer._rms_norm")
        assert {"embedding", "qkv_proj", "ffn", "lm_head"} <= set(found)

    def test_what_a_partial_fixes_is_part_of_the_name(self):
        def kernel(self, block):
            """Kernel of some layer."""

        assert implementations.name_of(functools.partial(kernel, None, block=64)).endswith("kernel(block=64)")
        assert implementations.name_of(functools.wraps(kernel)(lambda: None)).endswith("kernel")

    def test_backends_experts_and_quantisation_are_named_as_lightllm_names_them(self, model):
        class Fa3AttBackend: ...

        class FuseMoeTriton: ...

        class Fp8: ...

        def weights(method):
            return types.SimpleNamespace(
                q_proj=types.SimpleNamespace(quant_method=types.SimpleNamespace(method_name=method)),
                experts=types.SimpleNamespace(fuse_moe_impl=FuseMoeTriton(), quant_method=Fp8()),
                name="not a weight",
            )

        model.prefill_att_backend, model.decode_att_backend, model.decode_att_backend1 = (
            Fa3AttBackend(),
            Fa3AttBackend(),
            None,
        )
        model.trans_layers_weight = [weights("none"), None, weights("w8a8")]
        found = implementations.names(model)
        assert (found["prefill_att_backend"], found["decode_att_backend"]) == ("Fa3AttBackend", "Fa3AttBackend")
        assert "decode_att_backend1" not in found
        assert found["experts"] == "FuseMoeTriton"
        assert found["quant_method"] == "Fp8, none, w8a8"

    def test_layers_that_differ_are_all_named(self, model):
        def of_the_middle(*args): ...

        model.layers_infer[1:1] = [fake_host.make([0.0]).basemodel.TpPartBaseModel().layers_infer[0]]
        model.layers_infer[1]._ffn = of_the_middle
        assert "of_the_middle" in implementations.names(model)["ffn"]

    def test_a_wrapped_model_is_named_like_the_plain_one(self, model):
        plain, patch_set = implementations.names(model), PatchSet()
        ranges.install(model, patch_set, Guard(), print, print)
        assert implementations.names(model) == plain
        patch_set.undo()
