"""Names of calls in the code of LightLLM's layers, by what they launch on the GPU. Any other call is unknown work."""

from __future__ import annotations

from lightllm_otel.records.vocabulary import Operator

# Calls that do the work of an operator where the layer makes them outside of the functions of the table.
WORK: dict[str, Operator] = {
    "add_": Operator.RESIDUAL,
    "add": Operator.RESIDUAL,
    "prefill_att": Operator.ATTENTION,
    "decode_att": Operator.ATTENTION,
    "copy_kv_to_mem_manager": Operator.KV_WRITE,
    "destindex_copy_kv": Operator.KV_WRITE,
}
COLLECTIVES = frozenset((
    "all_reduce", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor", "all_to_all_single",
    "_all_to_all_balance_get", "_all_to_all_unbalance_get",
))  # fmt: skip
COPIES = frozenset(("to", "float", "half", "bfloat16", "type", "contiguous", "reshape", "clone", "copy_"))
# Calls that launch nothing: views of a tensor, allocations, descriptions, and plain Python.
FREE = frozenset((
    "view", "view_as", "size", "dim", "numel", "stride", "unsqueeze", "squeeze", "permute", "transpose", "t", "split", "chunk",
    "expand", "expand_as", "narrow", "select", "detach", "is_contiguous", "data_ptr", "element_size",
    "alloc_tensor", "empty", "empty_like", "new_empty", "get_att_input_params", "get_env_start_args",
    "is_current_stream_capturing", "is_capturing", "AttControl", "no_grad", "inference_mode", "nullcontext", "get", "append",
    "items", "keys", "debug", "info", "warning",
))  # fmt: skip
PYTHON = frozenset((
    "isinstance", "len", "getattr", "hasattr", "setattr", "int", "bool", "str", "float", "max", "min", "range", "enumerate",
    "zip", "list", "tuple", "dict", "set", "print", "super", "type", "Exception",
))  # fmt: skip
# Decorators that launch nothing.
DECORATORS = frozenset((
    "mark_cost_time", "no_grad", "inference_mode", "final", "override", "staticmethod", "classmethod", "abstractmethod",
))  # fmt: skip
