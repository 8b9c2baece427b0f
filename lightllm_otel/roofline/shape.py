"""Model shapes: from a table of names, or from a Hugging Face config.json."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DTYPE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float8": 1, "int8": 1}
_MOST = 1 << 32  # largest plausible number in a config


class UnknownModel(LookupError):
    """Raised when neither the table nor a config gives the shape of a model; the message says what is missing."""


@dataclasses.dataclass(frozen=True)
class Latent:
    """Multi-head latent attention (DeepSeek).

    ``kv_rank`` and ``q_rank``: ranks of the compressed keys/values and queries (``q_rank`` 0: not compressed). ``nope`` and
    ``rope``: dimensions of a query head without and with rotary embedding. ``value``: dimensions of a value head.
    """

    kv_rank: int
    q_rank: int
    nope: int
    rope: int
    value: int


@dataclasses.dataclass(frozen=True)
class Experts:
    """Mixture of experts.

    ``count``: routed experts of a layer. ``active``: experts that a token uses. ``intermediate``: width of one expert.
    ``shared``: experts that all tokens use. ``first_layer``: the first layer with experts; the layers before it are dense.
    """

    count: int
    active: int
    intermediate: int
    shared: int = 0
    first_layer: int = 0


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """Dimensions of a transformer model. ``ffn_matrices``: 3 with a gate (SwiGLU), else 2."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    ffn_matrices: int = 3
    experts: Experts | None = None
    latent: Latent | None = None

    @property
    def is_plain(self) -> bool:
        """Return whether the model has multi-head attention and a feed-forward part of two matrices of width 4h.

        The original analysis (docs/original-analysis.md) assumes this shape.
        """
        return self.heads == self.kv_heads and self.ffn_matrices == 2 and self.intermediate == 4 * self.hidden


def _dense(
    name: str, layers: int, hidden: int, heads: int, kv_heads: int, intermediate: int, vocab: int, head_dim: int = 0
) -> ModelShape:
    return ModelShape(name, layers, hidden, heads, kv_heads, head_dim or hidden // heads, intermediate, vocab)


SHAPES = (
    _dense("llama2-7b", 32, 4096, 32, 32, 11008, 32000),
    _dense("llama2-13b", 40, 5120, 40, 40, 13824, 32000),
    _dense("llama2-70b", 80, 8192, 64, 8, 28672, 32000),
    _dense("llama3-8b", 32, 4096, 32, 8, 14336, 128256),
    _dense("llama3-70b", 80, 8192, 64, 8, 28672, 128256),
    _dense("mistral-7b", 32, 4096, 32, 8, 14336, 32000),
    _dense("qwen2-7b", 28, 3584, 28, 4, 18944, 152064),
    _dense("qwen2-72b", 80, 8192, 64, 8, 29568, 152064),
    _dense("qwen2.5-7b", 28, 3584, 28, 4, 18944, 152064),
    _dense("qwen2.5-32b", 64, 5120, 40, 8, 27648, 152064),
    _dense("qwen3-8b", 36, 4096, 32, 8, 12288, 151936, 128),
    _dense("qwen3-32b", 64, 5120, 64, 8, 25600, 151936, 128),
    dataclasses.replace(_dense("qwen3-30b-a3b", 48, 2048, 32, 4, 6144, 151936, 128), experts=Experts(128, 8, 768)),
    dataclasses.replace(_dense("mixtral-8x7b", 32, 4096, 32, 8, 14336, 32000), experts=Experts(8, 2, 14336)),
    dataclasses.replace(
        _dense("deepseek-v2-lite", 27, 2048, 16, 16, 10944, 102400, 192),
        experts=Experts(64, 6, 1408, 2, 1), latent=Latent(512, 0, 128, 64, 128),
    ),
    dataclasses.replace(
        _dense("deepseek-v2", 60, 5120, 128, 128, 12288, 102400, 192),
        experts=Experts(160, 6, 1536, 2, 1), latent=Latent(512, 1536, 128, 64, 128),
    ),
    dataclasses.replace(
        _dense("deepseek-v3", 61, 7168, 128, 128, 18432, 129280, 192),
        experts=Experts(256, 8, 2048, 1, 3), latent=Latent(512, 1536, 128, 64, 128),
    ),
)  # fmt: skip
BY_NAME = {shape.name: shape for shape in SHAPES}


def find(name: str) -> ModelShape:
    """Return the shape for a model name (in any case), a config.json, or a folder with one. Raises UnknownModel."""
    if name.lower() in BY_NAME:
        return BY_NAME[name.lower()]
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    if not path.exists():
        raise UnknownModel(f"model {name!r} is not known; known: {', '.join(BY_NAME)}, or give a config.json")
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UnknownModel(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise UnknownModel(f"{path} does not hold a JSON object; pass the config.json of the model")
    return from_config(config, str(config.get("_name_or_path") or path.resolve().parent.name))


def from_config(config: Mapping[str, Any], name: str = "model") -> ModelShape:
    """Return the shape from the keys that LightLLM reads, with their aliases.

    Raises UnknownModel if a required key is missing, or if a value is not a plausible number.
    """
    if not isinstance(config, Mapping):
        raise UnknownModel(f"the config of {name} is not a JSON object; pass the config.json of the model")

    def value(*keys: str, default: int | None = None) -> int:
        for key in keys:
            if (found := config.get(key)) is not None:
                # A key whose default is 0 may also be written as 0.
                least = 0 if default == 0 else 1
                if (
                    isinstance(found, bool)
                    or not isinstance(found, (int, float))
                    or not least <= found <= _MOST
                    or found % 1
                ):
                    raise UnknownModel(
                        f"the config of {name} has {key} {found!r}; it must be a whole number of at least {least}"
                    )
                return int(found)
        if default is None:
            raise UnknownModel(f"the config of {name} has no {' or '.join(keys)}")
        return default

    hidden = value("hidden_size", "n_embd", "n_embed")
    heads = value("num_attention_heads", "n_head")
    if heads > hidden:
        raise UnknownModel(
            f"the config of {name} has {heads} heads for a hidden size of {hidden}; one of them is wrong"
        )
    intermediate = value("intermediate_size", "n_inner", default=4 * hidden)
    gated = str(config.get("hidden_act", config.get("hidden_activation", "silu"))) in (
        "silu",
        "swiglu",
        "gelu_pytorch_tanh",
    )
    return ModelShape(
        name, value("num_hidden_layers", "n_layer"), hidden, heads, value("num_key_value_heads", default=heads),
        value("head_dim", default=hidden // heads), intermediate, value("vocab_size"),
        ffn_matrices=3 if gated else 2, experts=_experts(config, value), latent=_latent(config, value),
    )  # fmt: skip


def _experts(config: Mapping[str, Any], value: Any) -> Experts | None:
    names = ("n_routed_experts", "num_experts", "num_local_experts")
    if not any(config.get(name) for name in names):
        return None
    return Experts(
        value(*names), value("num_experts_per_tok"), value("moe_intermediate_size", "intermediate_size"),
        value("n_shared_experts", default=0), value("first_k_dense_replace", default=0),
    )  # fmt: skip


def _latent(config: Mapping[str, Any], value: Any) -> Latent | None:
    if not config.get("kv_lora_rank"):
        return None
    return Latent(
        value("kv_lora_rank"), value("q_lora_rank", default=0), value("qk_nope_head_dim"), value("qk_rope_head_dim"),
        value("v_head_dim"),
    )  # fmt: skip
