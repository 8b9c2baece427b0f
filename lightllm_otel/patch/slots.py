"""The table: which attribute of a LightLLM layer is which operator. A new model family is at most a row here.

Names are those of the template that nearly all families share, in both LightLLM versions. Layers bind many of them
per instance (``self._att_norm = partial(…)``), so slots are wrapped on instances, whatever they hold.
"""

from __future__ import annotations

import dataclasses
from typing import Optional

from lightllm_otel.vocabulary import Operator


@dataclasses.dataclass(frozen=True)
class Slot:
    """``leads``: what the time between the previous boundary and this operator's start belongs to.

    None means that the operator follows the previous one directly, so that its start needs no boundary of its own.
    """

    operator: Operator
    names: tuple[str, ...]
    leads: Optional[Operator] = None


LAYER_SLOTS = (
    Slot(Operator.ATTN_NORM, ("_att_norm",), leads=Operator.RESIDUAL),
    Slot(Operator.QKV_PROJ, ("_get_qkv", "_tpsp_get_qkv")),
    # OLD's _post_cache_kv copies only when memory is fragmented; this is the copy itself, in both versions.
    Slot(Operator.KV_WRITE, ("_copy_kv_to_mem_cache",)),
    Slot(
        Operator.ATTENTION,
        ("_context_attention_kernel", "_token_attention_kernel", "_splitfuse_attention_kernel"),
    ),
    Slot(Operator.O_PROJ, ("_get_o", "_tpsp_get_o")),
    # gemma3's norms before and after the feed-forward are its _ffn_norm's siblings.
    Slot(
        Operator.FFN_NORM,
        ("_ffn_norm", "_pre_feedforward_layernorm", "_post_feedforward_layernorm"),
        leads=Operator.RESIDUAL,
    ),
    Slot(Operator.FFN, ("_ffn", "_tpsp_ffn")),
)

_ENTRIES = ("context_forward", "token_forward", "splitfuse_forward", "tpsp_context_forward", "tpsp_token_forward")
PRE_SLOTS = (Slot(Operator.EMBEDDING, _ENTRIES, leads=Operator.GAP),)
POST_SLOTS = (Slot(Operator.LM_HEAD, _ENTRIES, leads=Operator.RESIDUAL),)

# What is not a slot of a layer: found missing or installed by the seams themselves.
SEAM_OPERATORS = (Operator.SAMPLING,)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A collective where it is called: attribute ``name`` of ``torch.distributed`` or of LightLLM's group class.

    ``payload``: the position of the argument that holds all of the data: the tensor that is reduced, or the output
    that is gathered into, or the input that is scattered. ``keyword``: its name, where the caller gives it by that.
    """

    operator: Operator
    name: str
    payload: int
    keyword: str


TORCH_LEAVES = (
    Leaf(Operator.ALL_REDUCE, "all_reduce", 0, "tensor"),
    Leaf(Operator.ALL_GATHER, "all_gather", 0, "tensor_list"),
    Leaf(Operator.ALL_GATHER, "all_gather_into_tensor", 0, "output_tensor"),
    Leaf(Operator.REDUCE_SCATTER, "reduce_scatter_tensor", 1, "input"),
)
# Methods: the first argument is the group itself.
GROUP_LEAVES = (
    Leaf(Operator.ALL_REDUCE, "all_reduce", 1, "input_"),
    Leaf(Operator.ALL_GATHER, "all_gather_into_tensor", 1, "output_"),
)
