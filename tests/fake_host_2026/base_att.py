"""Attention states: one for each forward, which refers back to the forward's state; and kernels that keep tensors there."""

import dataclasses
from typing import Any

from .machine import HIDDEN, Tensor, blend, empty, gpu, rowwise


class BaseAttBackend:
    """One object for each class, whichever model asks for it; ``model`` is the one that has asked last."""

    _instances = {}  # noqa: RUF012 - as the host has it

    def __new__(cls, *args, **kwargs):
        return cls._instances.setdefault(cls, super().__new__(cls))

    def __init__(self, model):
        self.model = model


@dataclasses.dataclass
class AttControl:
    linear_att_prefill: bool = False
    linear_att_prefill_dict: Any = None
    linear_att_decode: bool = False
    linear_att_decode_dict: Any = None


@dataclasses.dataclass
class BasePrefillAttState:
    backend: Any = None
    infer_state: Any = None


@dataclasses.dataclass
class BaseDecodeAttState:
    backend: Any = None
    infer_state: Any = None

    def copy_for_decode_cuda_graph(self, new_state):
        for attr_name, attr_value in vars(new_state).items():
            if isinstance(attr_value, Tensor):
                attr_ = getattr(self, attr_name, None)
                if attr_ is not None and attr_.data_ptr() != attr_value.data_ptr():
                    attr_.copy_(attr_value, non_blocking=True)


class TritonAttBackend(BaseAttBackend):
    def create_att_prefill_state(self, infer_state):
        return TritonPrefillAttState(backend=self, infer_state=infer_state)

    def create_att_decode_state(self, infer_state):
        return TritonDecodeAttState(backend=self, infer_state=infer_state)


@dataclasses.dataclass
class TritonPrefillAttState(BasePrefillAttState):
    def init_state(self):
        pass

    def prefill_att(self, q, k, v, att_control=AttControl(), alloc_func=empty):  # noqa: B008 - as the host has it
        out, state = alloc_func(*q.shape), self.infer_state

        def attend(rows, seq_lens, q_seq_lens):
            """Each token looks at what its request has before it."""
            owners = [(seq, new) for seq, new in zip(seq_lens, q_seq_lens) for _ in range(new)]
            return tuple(blend("attention", row, *owner) for row, owner in zip(rows, owners))

        gpu.run("attention", attend, out, q, state.b_seq_len, state.b_q_seq_len)
        return out


@dataclasses.dataclass
class TritonDecodeAttState(BaseDecodeAttState):
    def init_state(self):
        pass

    def copy_for_decode_cuda_graph(self, new_state):
        super().copy_for_decode_cuda_graph(new_state)

    def decode_att(self, q, k, v, att_control=AttControl(), alloc_func=empty):  # noqa: B008 - as the host has it
        out = alloc_func(*q.shape)
        gqa_token_decode_attention_flash_decoding_vsm(q, k, v, infer_state=self.infer_state, out=out)
        return out


def gqa_token_decode_attention_flash_decoding_vsm(
    q, k, v, infer_state, out=None, alloc_tensor_func=empty, **run_config
):
    """The size of the blocks depends on all lengths; it is computed by the first layer of a forward, and kept."""
    if not hasattr(infer_state, "decode_att_block_seq"):
        decode_att_block_seq = empty(1)
        gpu.run("block_seq", lambda lengths: (max(lengths) // 4 + 1,), decode_att_block_seq, infer_state.b_seq_len)
        infer_state.decode_att_block_seq = decode_att_block_seq

    def attend(rows, lengths, block_seq):
        return tuple(blend("attention", *each, *block_seq) for each in zip(rows, lengths))

    gpu.run("attention", attend, out, q, infer_state.b_seq_len, infer_state.decode_att_block_seq)


class LinearAttBackend(BaseAttBackend):
    def create_att_prefill_state(self, infer_state):
        return LinearAttPrefillAttState(backend=self, infer_state=infer_state)

    def create_att_decode_state(self, infer_state):
        return LinearAttDecodeAttState(backend=self, infer_state=infer_state)


@dataclasses.dataclass
class LinearAttPrefillAttState(BasePrefillAttState):
    b_conv_buffer_idx: Any = None

    def init_state(self):
        self.b_conv_buffer_idx = self.infer_state.b_req_idx

    def prefill_att(self, q, k, v, att_control=AttControl(), alloc_func=empty):  # noqa: B008 - as the host has it
        assert q is None
        assert att_control.linear_att_prefill
        state = self.infer_state
        owners = [index for index, new in enumerate(_of_cpu(state.b_q_seq_len)) for _ in range(new)]
        return _recur(
            self, att_control.linear_att_prefill_dict, lambda rows, requests: [requests[each] for each in owners]
        )


@dataclasses.dataclass
class LinearAttDecodeAttState(BaseDecodeAttState):
    b_conv_buffer_idx: Any = None

    def init_state(self):
        self.b_conv_buffer_idx = self.infer_state.b_req_idx

    def decode_att(self, q, k, v, att_control=AttControl(), alloc_func=empty):  # noqa: B008 - as the host has it
        assert q is None
        assert att_control.linear_att_decode
        return _recur(self, att_control.linear_att_decode_dict, lambda rows, requests: requests)


def _of_cpu(tensor):
    """What a kernel of the real host reads on the GPU; no wait."""
    return tensor.value


def _recur(att_state, given, owners_of):
    """The recurrent state of each request changes in place, so the same input gives another output the next time."""
    mixed, layer_num = given["mixed_qkvzba"], given["layer_num"]
    req_manager = att_state.infer_state.req_manager
    out, states = empty(mixed.shape[0], HIDDEN), req_manager.get_mamba_cache(layer_num)
    made = empty(mixed.shape[0], HIDDEN)

    def recur(rows, requests, kept):
        return tuple(blend("linear_attention", row, kept[owner]) for row, owner in zip(rows, owners_of(rows, requests)))

    def keep(rows, requests, kept):
        new = list(kept)
        for row, owner in zip(rows, owners_of(rows, requests)):
            new[owner] = row
        return tuple(new)

    gpu.run("linear_attention", recur, out, mixed, att_state.b_conv_buffer_idx, states)
    gpu.run("copy", keep, states, out, att_state.b_conv_buffer_idx, states)
    gpu.run("copy", rowwise("copy"), made, mixed)
    return out, made
