"""Write a LLaMA-shaped checkpoint with random weights, and a byte tokenizer that has a token for every id.

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
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int

    @property
    def kv_hidden(self) -> int:
        return self.hidden // self.heads * self.kv_heads


SHAPES = {
    "tiny": Shape(layers=2, hidden=64, intermediate=176, heads=4, kv_heads=4, vocab=512),
    "llama-8-layers": Shape(layers=8, hidden=4096, intermediate=11008, heads=32, kv_heads=32, vocab=32000),
    "llama-7b": Shape(layers=32, hidden=4096, intermediate=11008, heads=32, kv_heads=32, vocab=32000),
}


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
        drawn = torch.randn(rows, columns, device=device, dtype=torch.float32, generator=generator)
        return (drawn * 0.02).to(dtype).cpu()

    def norm() -> torch.Tensor:
        return torch.ones(shape.hidden, dtype=dtype)

    yield {
        "model.embed_tokens.weight": weight(shape.vocab, shape.hidden),
        "model.norm.weight": norm(),
        "lm_head.weight": weight(shape.vocab, shape.hidden),
    }
    for layer in range(shape.layers):
        tensors = {
            "self_attn.q_proj": weight(shape.hidden, shape.hidden),
            "self_attn.k_proj": weight(shape.kv_hidden, shape.hidden),
            "self_attn.v_proj": weight(shape.kv_hidden, shape.hidden),
            "self_attn.o_proj": weight(shape.hidden, shape.hidden),
            "mlp.gate_proj": weight(shape.intermediate, shape.hidden),
            "mlp.up_proj": weight(shape.intermediate, shape.hidden),
            "mlp.down_proj": weight(shape.hidden, shape.intermediate),
            "input_layernorm": norm(),
            "post_attention_layernorm": norm(),
        }
        yield {f"model.layers.{layer}.{name}.weight": tensor for name, tensor in tensors.items()}


def _config(shape: Shape, dtype: str) -> dict[str, object]:
    """The keys of transformers 4: LightLLM reads torch_dtype and rope_theta, which version 5 renamed."""
    return {
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
