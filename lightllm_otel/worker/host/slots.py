"""Table of slots: which function of a LightLLM layer is which operator. A new model family needs at most a few rows.

The names are those of the template that nearly all families share. Layers bind many of them per instance
(``self._att_norm = partial(…)``), so slots are wrapped on instances. The work between them is read from the layer's code
(:mod:`lightllm_otel.worker.host.between`), not from this table.
"""

from __future__ import annotations

from typing import NamedTuple

from lightllm_otel.contracts.table import JULY_2025, MAIN, OLDEST, V1_1, V1_2
from lightllm_otel.records.vocabulary import Implementation, Operator

WEIGHTS = "weights"


class Slot(NamedTuple):
    """Functions of a layer that are one operator.

    ``since`` and ``until``: the first and the last version in which the row was seen. Rows of one ``group`` replace each other:
    the first row whose functions a layer has is used. ``on``: the attribute of the layer whose functions these are;
    ``WEIGHTS``: objects among the layer's weights, which the layer calls. ``unless_returned``: a call that returns one of its
    arguments has launched nothing and does not count. ``part``: the call belongs to the operator's main call, before or after
    it. ``inside``: cut out of the operator that calls it. ``helper``: wrapped only where the layer calls it outside of its
    other operators.
    """

    operator: Operator
    names: tuple[str, ...]
    since: str
    until: str
    group: str = ""
    on: str = ""
    unless_returned: bool = False
    part: bool = False
    inside: bool = False
    helper: bool = False


LAYER_SLOTS = (
    Slot(Operator.ATTN_NORM, ("_att_norm",), OLDEST, MAIN),
    Slot(Operator.ATTN_NORM, ("_awquant_att_norm",), OLDEST, OLDEST, helper=True),
    Slot(Operator.QKV_PROJ, ("_get_qkv",), OLDEST, MAIN),
    Slot(Operator.QKV_PROJ, ("_tpsp_get_qkv",), JULY_2025, V1_1),
    Slot(Operator.QKV_PROJ, ("_linear_in_proj",), V1_2, MAIN),
    # Up to v1.1.0, _post_cache_kv calls this; in 0.0.1 only while memory is fragmented.
    Slot(Operator.KV_WRITE, ("_copy_kv_to_mem_cache",), OLDEST, V1_1, group="kv_write"),
    Slot(Operator.KV_WRITE, ("_post_cache_kv",), V1_2, MAIN, group="kv_write"),
    Slot(Operator.ATTENTION, ("_context_attention_kernel", "_token_attention_kernel"), OLDEST, MAIN),
    Slot(Operator.ATTENTION, ("_splitfuse_attention_kernel",), OLDEST, OLDEST),
    # DeepSeek 3.2 selects the tokens to attend to inside its attention, with several GEMMs and a gather.
    Slot(Operator.OTHER, ("_get_indices",), V1_2, MAIN, on="indexer", inside=True),
    Slot(Operator.O_PROJ, ("_get_o",), OLDEST, MAIN),
    Slot(Operator.O_PROJ, ("_tpsp_get_o",), JULY_2025, V1_1),
    Slot(Operator.O_PROJ, ("_linear_post",), V1_2, MAIN),
    Slot(Operator.FFN_NORM, ("_ffn_norm",), OLDEST, MAIN),
    Slot(Operator.FFN_NORM, ("_awquant_ffn_norm",), OLDEST, OLDEST, helper=True),
    # gemma3 and gemma4 have a norm before and after the feed-forward; up to v1.1.0 these are methods.
    Slot(Operator.FFN_NORM, ("_pre_feedforward_layernorm", "_post_feedforward_layernorm"), JULY_2025, V1_1),
    Slot(
        Operator.FFN_NORM,
        ("pre_feedforward_layernorm_weight_", "post_feedforward_layernorm_weight_", "post_feedforward_layernorm_1_weight_",
         "pre_feedforward_layernorm_2_weight_", "post_feedforward_layernorm_2_weight_"),
        V1_2, MAIN, on=WEIGHTS, helper=True,
    ),
    # gemma4's _ffn holds its norms and its residual as well.
    Slot(Operator.FFN, ("_ffn_dense", "_ffn_moe", "_router_logits"), V1_2, MAIN, group="ffn"),
    Slot(Operator.FFN, ("_ffn",), OLDEST, MAIN, group="ffn"),
    Slot(Operator.FFN, ("_tpsp_ffn",), JULY_2025, V1_1),
    Slot(Operator.OTHER, ("_block_epilogue",), V1_2, MAIN, helper=True),
    Slot(Operator.OTHER, ("_apply_deepstack_features_wrapper_run",), V1_2, MAIN, helper=True),
    Slot(Operator.OTHER, ("_tpsp_allgather", "_tpsp_sp_split"), V1_2, MAIN, unless_returned=True, helper=True),
)  # fmt: skip

# Forward functions of a layer, and of what comes before and after all layers.
ENTRIES = ("context_forward", "token_forward", "splitfuse_forward", "tpsp_context_forward", "tpsp_token_forward")
PRE_SLOTS = (
    Slot(Operator.EMBEDDING, ENTRIES, OLDEST, MAIN),
    Slot(Operator.EMBEDDING, ("_tpsp_sp_split",), V1_2, MAIN, unless_returned=True, part=True),
    # Gathers what a draft model gets from the main model.
    Slot(Operator.OTHER, ("_tpsp_allgather",), V1_2, MAIN, unless_returned=True),
)
POST_SLOTS = (
    Slot(Operator.LM_HEAD, ("_tpsp_allgather",), V1_2, MAIN, unless_returned=True, part=True),
    Slot(Operator.LM_HEAD, ENTRIES, OLDEST, MAIN),
)

# Operators that every transformer layer has.
OF_A_LAYER = (
    Operator.ATTN_NORM, Operator.QKV_PROJ, Operator.KV_WRITE, Operator.ATTENTION, Operator.O_PROJ, Operator.FFN_NORM,
    Operator.FFN,
)  # fmt: skip


class Leaf(NamedTuple):
    """Collective as attribute ``name`` of ``torch.distributed`` or of LightLLM's group class.

    ``payload``: names of the parameter that holds all of the data: the tensor that is reduced, the output of a gather, or the
    input that is scattered or exchanged.
    """

    operator: Operator
    name: str
    payload: tuple[str, ...]


TORCH_LEAVES = (
    Leaf(Operator.ALL_REDUCE, "all_reduce", ("tensor",)),
    Leaf(Operator.ALL_GATHER, "all_gather", ("tensor_list",)),
    Leaf(Operator.ALL_GATHER, "all_gather_into_tensor", ("output_tensor",)),
    Leaf(Operator.REDUCE_SCATTER, "reduce_scatter_tensor", ("input",)),
    Leaf(Operator.ALL_TO_ALL, "all_to_all_single", ("input",)),
)
GROUP_LEAVES = (
    Leaf(Operator.ALL_REDUCE, "all_reduce", ("input_",)),
    Leaf(Operator.ALL_GATHER, "all_gather_into_tensor", ("output_",)),
)


class Provider(NamedTuple):
    """Library other than torch that LightLLM's process group may choose: method ``name`` of the attribute ``owner``."""

    implementation: Implementation
    owner: str
    name: str
    since: str
    until: str


PROVIDERS = (
    Provider(Implementation.FLASHINFER, "flashinfer_reduce", "all_reduce", V1_2, MAIN),
    Provider(Implementation.SYMM_MEM, "symm_mem_reduce", "all_reduce", V1_2, MAIN),
)
