"""What a forward is given and what it returns."""

import dataclasses
from typing import Any

from .machine import to_gpu, without_reference

ON_GPU = ("input_ids", "b_is_decode_req", "b_req_idx", "b_seq_len", "b_mtp_index", "b_ready_cache_len", "b_position_delta",
          "b_prefill_start_loc")  # fmt: skip


@dataclasses.dataclass
class ModelInput:
    """Tensors are on the CPU until ``to_cuda``; in decode ``input_ids`` is None, because the tokens are on the GPU only."""

    batch_size: int
    total_token_num: int
    max_q_seq_len: int
    max_kv_seq_len: int
    max_cache_len: int = None
    prefix_total_token_num: int = None
    input_ids: Any = None
    b_req_idx: Any = None
    b_mtp_index: Any = None
    b_seq_len: Any = None
    b_is_decode_req: Any = None
    b_shared_seq_len: Any = None
    b_mark_shared_group: Any = None
    mem_indexes: Any = None
    is_prefill: bool = False
    b_ready_cache_len: Any = None
    b_position_delta: Any = None
    b_prefill_start_loc: Any = None
    multimodal_params: list = None
    mem_indexes_cpu: Any = None
    b_prefill_has_output_cpu: list = None
    mtp_draft_input_hiddens: Any = None

    def to_cuda(self):
        self.check_input()
        for name in ON_GPU:
            setattr(self, name, to_gpu(getattr(self, name)))
        if self.mem_indexes is None:
            self.mem_indexes = to_gpu(self.mem_indexes_cpu)
        assert (self.b_position_delta is None) == self.is_prefill
        assert self.b_is_decode_req is None or self.is_prefill

    def __post_init__(self):
        self.check_input()

    def check_input(self):
        assert len(self.multimodal_params) == self.batch_size


@dataclasses.dataclass
class ModelOutput:
    logits: Any
    prefill_mem_indexes_ready_event: Any = None
    mtp_main_output_hiddens: Any = None
    prompt_logics: Any = None

    def to_no_ref_tensor(self):
        self.logits = without_reference(self.logits)
        if self.mtp_main_output_hiddens is not None:
            self.mtp_main_output_hiddens = without_reference(self.mtp_main_output_hiddens)
