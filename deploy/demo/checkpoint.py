"""Write a checkpoint of LLaMA's or Qwen3-MoE's shape with random weights, and a byte tokenizer with a token for every id.

With it one character of ASCII is one token, so a prompt's length is known without a tokenizer.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
MAX_POSITIONS = 4096


@dataclasses.dataclass(frozen=True)
class Shape:
    """``head_dim`` 0 means hidden / heads. With ``experts`` it is a Qwen3-MoE, with ``qk_norm`` 1 a Qwen3, else a LLaMA.

    LightLLM 0.0.1 knows LLaMA alone.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    head_dim: int = 0
    experts: int = 0
    active_experts: int = 0
    moe_intermediate: int = 0
    qk_norm: int = 0

    @property
    def head(self) -> int:
        return self.head_dim or self.hidden // self.heads

    @property
    def q_hidden(self) -> int:
        return self.head * self.heads

    @property
    def kv_hidden(self) -> int:
        return self.head * self.kv_heads


SHAPES = {
    "tiny": Shape(layers=2, hidden=64, intermediate=176, heads=4, kv_heads=4, vocab=512),
    "tiny-moe": Shape(
        layers=2, hidden=64, intermediate=176, heads=4, kv_heads=2, vocab=512,
        head_dim=32, experts=8, active_experts=2, moe_intermediate=64,
    ),
    "tiny-qwen3": Shape(
        layers=2, hidden=64, intermediate=176, heads=4, kv_heads=2, vocab=512, head_dim=32, qk_norm=1
    ),
    # Eight layers of three hidden sizes beside LLaMA-7B's: where the host is the bound, a step does not get longer with them.
    "llama-1024": Shape(layers=8, hidden=1024, intermediate=2816, heads=8, kv_heads=8, vocab=32000),
    "llama-2048": Shape(layers=8, hidden=2048, intermediate=5632, heads=16, kv_heads=16, vocab=32000),
    "llama-8192": Shape(layers=8, hidden=8192, intermediate=22528, heads=64, kv_heads=64, vocab=32000),
    "llama-8-layers": Shape(layers=8, hidden=4096, intermediate=11008, heads=32, kv_heads=32, vocab=32000),
    "llama-7b": Shape(layers=32, hidden=4096, intermediate=11008, heads=32, kv_heads=32, vocab=32000),
    "llama-13b": Shape(layers=40, hidden=5120, intermediate=13824, heads=40, kv_heads=40, vocab=32000),
    # Six of LLaMA-2-70B's 80 layers, 10 GB; its heads can be shared by 2, 4 or 8 ranks.
    "llama-70b-6-layers": Shape(layers=6, hidden=8192, intermediate=28672, heads=64, kv_heads=8, vocab=32000),
    # LLaMA-3-8B, but for its vocabulary of 128 256.
    "llama-8b-gqa": Shape(layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, vocab=32000),
    "qwen3-8b": Shape(
        layers=36, hidden=4096, intermediate=12288, heads=32, kv_heads=8, vocab=151936, head_dim=128, qk_norm=1
    ),
    # A layer of Qwen3-30B-A3B with half its experts; 12 of its 48 layers are 8 GB.
    "qwen3-moe": Shape(
        layers=12, hidden=2048, intermediate=6144, heads=32, kv_heads=4, vocab=32000,
        head_dim=128, experts=64, active_experts=8, moe_intermediate=768,
    ),
}  # fmt: skip


def write(directory: Path, shape: Shape, dtype: str = "float16", seed: int = 0) -> Path:
    """The same arguments on the same kind of device give the same weights."""
    directory.mkdir(parents=True, exist_ok=True)
    index = {}
    for number, tensors in enumerate(_shards(shape, DTYPES[dtype], seed)):
        name = f"model-{number:05d}.safetensors"
        save_file(tensors, directory / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, name))
    _dump(directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})
    _dump(directory / "config.json", _config(shape, dtype))
    _dump(directory / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    _write_tokenizer(directory, shape.vocab)
    return directory


def _shards(shape: Shape, dtype: torch.dtype, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """One file per layer, so that a large model never lies in memory as a whole."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device=device).manual_seed(seed)

    def weight(rows: int, columns: int) -> torch.Tensor:
        if device == "cuda":  # half the bytes and one pass less, which a large model's start consists of
            return torch.randn(rows, columns, device=device, dtype=dtype, generator=generator).mul_(0.02).cpu()
        drawn = torch.randn(rows, columns, device=device, dtype=torch.float32, generator=generator)
        return (drawn * 0.02).to(dtype)

    def norm(size: int = shape.hidden) -> torch.Tensor:
        return torch.ones(size, dtype=dtype)

    yield {
        "model.embed_tokens.weight": weight(shape.vocab, shape.hidden),
        "model.norm.weight": norm(),
        "lm_head.weight": weight(shape.vocab, shape.hidden),
    }
    for layer in range(shape.layers):
        tensors = {
            "self_attn.q_proj": weight(shape.q_hidden, shape.hidden),
            "self_attn.k_proj": weight(shape.kv_hidden, shape.hidden),
            "self_attn.v_proj": weight(shape.kv_hidden, shape.hidden),
            "self_attn.o_proj": weight(shape.hidden, shape.q_hidden),
        }
        if shape.experts or shape.qk_norm:
            tensors["self_attn.q_norm"] = norm(shape.head)
            tensors["self_attn.k_norm"] = norm(shape.head)
        if shape.experts:
            tensors["mlp.gate"] = weight(shape.experts, shape.hidden)
        width = shape.moe_intermediate if shape.experts else shape.intermediate
        for expert in [f".experts.{number}" for number in range(shape.experts)] or [""]:
            tensors[f"mlp{expert}.gate_proj"] = weight(width, shape.hidden)
            tensors[f"mlp{expert}.up_proj"] = weight(width, shape.hidden)
            tensors[f"mlp{expert}.down_proj"] = weight(shape.hidden, width)
        tensors["input_layernorm"] = norm()
        tensors["post_attention_layernorm"] = norm()
        yield {f"model.layers.{layer}.{name}.weight": tensor for name, tensor in tensors.items()}


def _config(shape: Shape, dtype: str) -> dict[str, object]:
    """The keys of transformers 4: LightLLM reads torch_dtype and rope_theta, which version 5 renamed."""
    config: dict[str, object] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": dtype,
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab,
        "max_position_embeddings": MAX_POSITIONS,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if shape.head_dim:
        config["head_dim"] = shape.head_dim
    if shape.qk_norm:
        config |= {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "rope_theta": 1e6,
            "rms_norm_eps": 1e-6,
            "attention_bias": False,
            "sliding_window": None,  # read without asking by v1.1.0 and before
            "head_dim": shape.head,  # Qwen3's layers read it without asking whether it is there
        }
    if shape.experts:
        config |= {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "num_experts": shape.experts,
            "num_experts_per_tok": shape.active_experts,
            "moe_intermediate_size": shape.moe_intermediate,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,  # every layer has experts
            "mlp_only_layers": [],
            "sliding_window": None,
            "head_dim": shape.head,  # Qwen3's layers read it without asking whether it is there
        }
    return config


def _write_tokenizer(directory: Path, vocab: int) -> None:
    tokens = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    # Random weights produce every id, and LightLLM's detokenizer dies on one that has no token.
    tokens += [f"<{number}>" for number in range(len(tokens), vocab)]
    ids = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    _dump(directory / "special_tokens_map.json", special)
    _dump(
        directory / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MAX_POSITIONS, **special},
    )


def _dump(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="tiny", help="a named shape; the options below change it")
    for field in dataclasses.fields(Shape):
        parser.add_argument("--" + field.name.replace("_", "-"), type=int)
    parser.add_argument("--dtype", choices=DTYPES, default="float16")
    given = parser.parse_args()
    changes = {field.name: getattr(given, field.name) for field in dataclasses.fields(Shape)}
    shape = dataclasses.replace(SHAPES[given.shape], **{name: size for name, size in changes.items() if size})
    print(write(given.directory, shape, given.dtype), shape)


if __name__ == "__main__":
    main()
