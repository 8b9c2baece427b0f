"""Decode attention that keeps a tensor on the state of a forward, for servers on the CPU.

Started by a .pth file where KEPT_LENGTHS is set. The first layer computes something of the batch's lengths and leaves it on
``att_state.infer_state`` for the others, as LightLLM's attention for DeepSeek does with its blocks (``decode_att_block_seq``
in ``mla_att/decode_att/gqa_flash_decoding.py``, since January 2026). A graph that was captured where the tensor was found
ready has no kernel that computes it, and attends to the lengths of some earlier step. What it computes here is a copy.
"""

import copy
from typing import Any

import wrapt


def keep_lengths(module: Any) -> None:
    host = module.TritonDecodeAttState._normal_decode_flash_decoding_att

    def by_kept_lengths(self: Any, *args: Any, **kwargs: Any) -> Any:
        state = self.infer_state
        if not hasattr(state, "kept_lengths"):
            state.kept_lengths = state.b_seq_len.clone()
        shown = copy.copy(state)
        shown.b_seq_len = state.kept_lengths
        self.infer_state = shown
        try:
            return host(self, *args, **kwargs)
        finally:
            self.infer_state = state

    module.TritonDecodeAttState._normal_decode_flash_decoding_att = by_kept_lengths


wrapt.register_post_import_hook(keep_lengths, "lightllm.common.basemodel.attention.triton.fp")
