"""Real layers of PyPI's LightLLM, without a GPU: their kernels are torch's, everything else is theirs."""

import importlib
import types
import warnings

import fakes
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightllm", reason="LightLLM 0.0.1 is not installed here")
dist = importlib.import_module("torch.distributed")

from lightllm_otel.contracts.patch_set import PatchSet  # noqa: E402
from lightllm_otel.guard import Guard  # noqa: E402
from lightllm_otel.records.vocabulary import Phase  # noqa: E402
from lightllm_otel.worker.gpu.clock import HostClock  # noqa: E402
from lightllm_otel.worker.gpu.step import Work  # noqa: E402
from lightllm_otel.worker.gpu.timer import Timer  # noqa: E402
from lightllm_otel.worker.host import operators  # noqa: E402

HIDDEN, HEADS, VOCAB, TOKENS = 32, 2, 48, 3
CONFIG = {
    "rms_norm_eps": 1e-5, "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "hidden_size": HIDDEN,
    "n_embed": HIDDEN, "vocab_size": VOCAB,
}  # fmt: skip


@pytest.fixture(scope="module")
def real():
    """Return the modules. Their import asks for the GPU's name, which is the only call that is replaced."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setattr(torch.cuda, "get_device_name", lambda *index: "none")
        package = "lightllm.models.llama.layer_infer."
        names = ("transformer_layer_infer", "pre_layer_infer", "post_layer_infer")
        return types.SimpleNamespace(**{name: importlib.import_module(package + name) for name in names})


def rmsnorm(x, weight, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


@pytest.fixture
def model(real, monkeypatch):
    """Return two real layers with torch's kernels, the real embedding and head, and weights of the right shapes."""
    module = real.transformer_layer_infer
    monkeypatch.setattr(module, "rmsnorm_forward", rmsnorm)
    monkeypatch.setattr(module, "rotary_emb_fwd", lambda *args: None)
    monkeypatch.setattr(module, "silu_and_mul_fwd", lambda x: torch.nn.functional.silu(x[:, :64]) * x[:, 64:])
    monkeypatch.setattr(real.post_layer_infer, "rmsnorm_forward", rmsnorm)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *args: None)
    monkeypatch.setattr(dist, "get_rank", lambda *args: 0)
    layer_class = module.LlamaTransformerLayerInfer

    def attention(self, q, *args, out=None):
        return q.view(-1, HIDDEN)

    monkeypatch.setattr(layer_class, "_token_decode_attention_normal", attention)
    monkeypatch.setattr(layer_class, "_context_attention_kernel", attention)
    return types.SimpleNamespace(
        pre_infer=real.pre_layer_infer.LlamaPreLayerInfer(0, 1, CONFIG, []),
        post_infer=real.post_layer_infer.LlamaPostLayerInfer(0, 1, CONFIG, []),
        layers_infer=[layer_class(number, 0, 1, CONFIG, []) for number in range(2)],
    )


def run(model, prefill):
    """Run the layers as the real ``_context_forward`` and ``_token_forward`` do."""
    generator = torch.Generator().manual_seed(0)

    def weight(*shape):
        return torch.randn(*shape, generator=generator) / 8

    weights = types.SimpleNamespace(
        wte_weight_=weight(VOCAB, HIDDEN), lm_head_weight_=weight(VOCAB, HIDDEN), final_norm_weight_=weight(HIDDEN),
        att_norm_weight_=weight(HIDDEN), ffn_norm_weight_=weight(HIDDEN), q_weight_=weight(HIDDEN, HIDDEN),
        kv_weight_=weight(HIDDEN, 2 * HIDDEN), o_weight_=weight(HIDDEN, HIDDEN), gate_up_proj=weight(HIDDEN, 128),
        down_proj=weight(64, HIDDEN),
    )  # fmt: skip
    state = types.SimpleNamespace(
        is_prefill=prefill, is_splitfuse=False, is_token_healing=False, return_all_prompt_logics=False, batch_size=1,
        b_seq_len=torch.tensor([TOKENS]), b_ready_cache_len=torch.tensor([0]), mem_is_contiguous=True, mem_start=0,
        mem_end=TOKENS, position_cos=None, position_sin=None,
        mem_manager=types.SimpleNamespace(kv_buffer=torch.zeros(2, TOKENS, 2 * HEADS, HIDDEN // HEADS)),
    )  # fmt: skip
    name = "context_forward" if prefill else "token_forward"
    hidden = getattr(model.pre_infer, name)(torch.arange(TOKENS), state, weights)
    for layer in model.layers_infer:
        hidden = getattr(layer, name)(hidden, state, weights)
    return model.post_infer.token_forward(hidden, state, weights, return_logics=True)


@pytest.mark.parametrize("prefill", [True, False], ids=["prefill", "decode"])
def test_a_real_step_is_the_same_with_our_wrappers_and_every_operator_is_seen(model, prefill):
    stock = run(model, prefill)
    patch_set, kept = PatchSet(), fakes.Kept()
    timer = Timer(HostClock(), kept)
    found = operators.install(model, timer, patch_set, Guard(strict=True))
    assert set(found.values()) == {operators.INSTALLED}
    phase = Phase.PREFILL if prefill else Phase.DECODE
    step = timer.enter(Work(phase, 1, TOKENS, TOKENS, pairs=prefill), number=0, due=True)
    result = run(model, prefill)
    timer.leave(step)
    timer.tick()
    patch_set.undo()
    assert torch.equal(result, stock)
    calls = {operator: len(seconds) for operator, seconds in kept.seconds().items()}
    layers = dict.fromkeys(("attn_norm", "qkv_proj", "attention", "o_proj", "ffn_norm", "ffn"), 2)
    expected = {"gap": 1, "embedding": 1, **layers, "lm_head": 1}
    # The last add lies before the head; in prefill the adds are part of the gap.
    assert calls == (expected if prefill else {**expected, "residual": 4})


def test_a_wrapped_layer_without_a_step_is_the_same(model):
    stock = run(model, False)
    patch_set = PatchSet()
    timer = Timer(HostClock(), fakes.Kept())
    operators.install(model, timer, patch_set, Guard(strict=True))
    assert torch.equal(run(model, False), stock)
    patch_set.undo()
    assert torch.equal(run(model, False), stock)


@pytest.mark.parametrize("family", ["qwen2", "mistral", "starcoder2", "qwen"])
def test_other_families_of_the_template_have_every_slot(real, family):
    package = f"lightllm.models.{family}.layer_infer.transformer_layer_infer"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module(package)
    (name,) = [name for name in vars(module) if name.lower() == f"{family}transformerlayerinfer"]
    config = {**CONFIG, "num_hidden_layers": 1, "sliding_window": 8, "norm_epsilon": 1e-5, "layer_norm_epsilon": 1e-5}
    layer = getattr(module, name)(0, 0, 1, config, [])
    patch_set = PatchSet()
    model = types.SimpleNamespace(pre_infer=None, post_infer=None, layers_infer=[layer])
    found = operators.install(model, Timer(HostClock(), fakes.Kept()), patch_set, Guard(strict=True))
    patch_set.undo()
    missing = {operator for operator, state in found.items() if state == operators.MISSING}
    assert missing == {"embedding", "lm_head"}  # this model has layers only
