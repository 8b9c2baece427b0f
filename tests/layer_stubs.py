"""Stand-ins for all that a LightLLM layer calls: each says its name to a log, and launches nothing.

A tensor is whatever code does with it. Weights, kernels, attention states and process groups are known by their names.
"""

from __future__ import annotations

import types

import torch


class Log:
    """What was called, in order: (name, number of boundaries before it)."""

    def __init__(self):
        self.calls = []
        self.boundaries = lambda: 0

    def say(self, name):
        self.calls.append((name, self.boundaries()))


LOG = Log()
# Calls of a tensor's that launch nothing.
VIEWS = {
    "view", "view_as", "permute", "transpose", "unsqueeze", "squeeze", "expand", "expand_as", "t", "narrow", "detach", "flatten",
    "unflatten", "select", "cpu", "cuda", "numpy",
}  # fmt: skip
FIXED = {"dtype": torch.bfloat16, "device": "cpu", "ndim": 2, "is_cuda": True}
SIZE = 4


class Shape(tuple):
    """Of as many dimensions as one asks for, up to three."""

    def __new__(cls):
        return super().__new__(cls, (SIZE, SIZE))

    def __getitem__(self, at):
        return Shape() if isinstance(at, slice) else SIZE


class Tensor:
    """Its arithmetic, copies and in-place operations are logged by the names of torch's functions; views are not."""

    def __init__(self, *_, **__):
        pass

    shape = property(lambda self: Shape())

    def __getattr__(self, name):
        if name in FIXED:
            return FIXED[name]
        if name.startswith("__"):
            raise AttributeError(name)

        def method(*args, **kwargs):
            return applied(name, (self, *args))

        return method

    @classmethod
    def __torch_function__(cls, func, kinds, args=(), kwargs=None):
        if func.__name__ == "split":
            return parts(args[1] if len(args) > 1 else kwargs["split_size_or_sections"])
        return applied(func.__name__, args)

    def __getitem__(self, at):
        inside = at if isinstance(at, tuple) else (at,)
        if any(isinstance(each, Tensor) for each in inside):
            LOG.say("index")
        return Tensor()

    def __setitem__(self, at, value):
        LOG.say("setitem")

    def split(self, sizes, dim=0):
        return parts(sizes)

    def size(self, dim=None):
        return Shape() if dim is None else SIZE

    def numel(self):
        return SIZE * SIZE

    def element_size(self):
        return 2

    def dim(self):
        return 2

    def __bool__(self):
        return True

    def __iter__(self):
        return iter(parts([0, 0]))

    def __len__(self):
        return SIZE


def parts(sizes):
    return [Tensor() for _ in sizes] if isinstance(sizes, (list, tuple)) else [Tensor(), Tensor()]


def applied(name, args):
    """Call a function of torch's or of a tensor's. One that takes a weight has its name."""
    if name in VIEWS:
        return next((each for each in args if isinstance(each, Weight)), Tensor())
    if name == "chunk":
        return parts([0, 0])
    LOG.say(".".join([*(each.name for each in args if isinstance(each, Weight)), name]))
    return Tensor()


def _operation(name):
    def method(self, *others):
        LOG.say(name)
        return Tensor()

    return method


OPERATIONS = (
    "add",
    "mul",
    "sub",
    "truediv",
    "pow",
    "neg",
    "ne",
    "gt",
    "ge",
    "lt",
    "le",
    "matmul",
    "iadd",
    "imul",
    "and",
    "or",
    "invert",
)
for _name in OPERATIONS:
    setattr(Tensor, f"__{_name}__", _operation(_name))
for _name in ("add", "mul", "sub", "truediv"):
    setattr(Tensor, f"__r{_name}__", _operation(_name))


class Weight(Tensor):
    """Some weight of a layer, by its attribute's name: an object with functions, and in older versions a tensor."""

    num_fused_shared_experts = 0
    vocab_size = 8
    tp_vocab_start_id, tp_vocab_end_id = 0, 8
    data_type_ = torch.bfloat16
    quant_method = types.SimpleNamespace(method_name="none")

    def __init__(self, name):
        self.name = name

    @property
    def weight(self):
        return Tensor()

    def __call__(self, *args, **kwargs):
        LOG.say(self.name)
        return Tensor()


class Weights:
    """``norm_class``: LightLLM's own class of norms, where it has one whose objects are called."""

    kv_lora_rank = SIZE + 1
    num_fused_shared_experts = 0
    q_lora_rank = None

    def __init__(self, norm_class=None):
        self._norm_class = norm_class

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        made = Weight(name)
        if self._norm_class is not None and "norm" in name and "qk" not in name:
            called, made = made, object.__new__(self._norm_class)
            vars(made).update(weight=called.weight, _forward=called.__call__)
        setattr(self, name, made)
        return made


class AttentionState:
    """Of main: LightLLM's backends of attention stand behind it."""

    def __init__(self):
        self.backend = types.SimpleNamespace(tp_num_v_heads=2, head_v_dim=2)

    def _attend(self, name, q):
        LOG.say(name)
        return (Tensor(), Tensor()) if q is None else Tensor()

    def prefill_att(self, q, k, v, **others):
        return self._attend("prefill_att", q)

    def decode_att(self, q, k, v, **others):
        return self._attend("decode_att", q)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Tensor()


class Memory:
    """The memory manager. ``operator``: what main writes the cache with."""

    kv_buffer = [Tensor() for _ in range(8)]
    scale_buffer = kv_buffer

    class operator:
        @staticmethod
        def copy_kv_to_mem_manager(layer_index, mem_index, kv):
            LOG.say("copy_kv_to_mem_manager")

    def get_att_input_params(self, layer_index):
        return Tensor(), Tensor()

    def get_indexer_k_buffer(self, layer_index):
        return Tensor()


class InferState:
    """Numbers where code computes with them, a tensor for everything else."""

    batch_size = 2
    total_token_num = max_kv_seq_len = max_q_seq_len = max_len_in_batch = max_cache_len = SIZE
    need_dp_prefill_balance = is_token_healing = return_all_prompt_logics = is_splitfuse = False
    mem_is_contiguous = False
    logn_values = prompt_logics = cpu_embed_cache_tensor = None
    multimodal_params = ()
    microbatch_index = 0
    is_cuda_graph = False
    kv_buffer_shapedtype = ((1, 1), torch.bfloat16)
    softmax_scale = 1.0

    experts_topk = num_local_experts = 2

    def __init__(self, group, is_prefill, memory):
        self.mark_multimodal_objs_for_prefill = lambda input_ids: None
        self.dist_group, self.is_prefill, self.mem_manager = group, is_prefill, memory
        self.prefill_att_state, self.prefill_att_state1 = AttentionState(), AttentionState()
        self.decode_att_state, self.decode_att_state1 = AttentionState(), AttentionState()
        self.req_manager = types.SimpleNamespace(req_to_token_indexs=Tensor())

    def _all_to_all_balance_get(self, data, change_state=True):
        torch.distributed.all_to_all_single(output=Tensor(), input=data)
        return data

    _all_to_all_unbalance_get = _all_to_all_balance_get

    def prepare_prefill_dp_balance(self):
        LOG.say("prepare_prefill_dp_balance")

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Tensor()


class Config(dict):
    """A model's config.json: what a layer asks for and is not told is a number."""

    def __missing__(self, key):
        return SIZE

    def get(self, key, default=None):
        return self[key] if key in self else default


def config(layers):
    return Config(
        num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=2, hidden_size=8, n_embed=8, vocab_size=8,
        head_dim=4, rms_norm_eps=1e-5, layer_norm_epsilon=1e-5, layer_norm_eps=1e-5, norm_epsilon=1e-5, norm_eps=1e-5,
        rope_scaling={"mrope_section": [1, 1, 1], "factor": 1.0, "mscale_all_dim": 0}, partial_rotary_factor=1.0,
        quantization_config={"weight_block_size": [128, 128], "scale_fmt": "ue8m0"},
        layer_types=["sliding_attention", "full_attention"] * layers, sliding_window=4, global_head_dim=4,
        num_global_key_value_heads=2, attention_k_eq_v=False, enable_moe_block=True, hidden_size_per_layer_input=4,
        num_kv_shared_layers=0, num_experts_per_tok=2, top_k_experts=2, num_experts=4, n_routed_experts=4, num_local_experts=4,
        norm_topk_prob=True, first_k_dense_replace=1, n_shared_experts=1, n_group=1, topk_group=1, moe_layer_freq=1,
        qk_nope_head_dim=2, qk_rope_head_dim=2, v_head_dim=2, kv_lora_rank=3, q_lora_rank=None, decoder_sparse_step=1,
        mlp_only_layers=[], full_attention_interval=2, final_logit_softcapping=30.0, index_n_heads=2, index_head_dim=2,
        index_topk=2, use_qk_norm=False, rope_theta=1e4, multi_query=True, num_key_value_heads_=2, pad_token_id=0,
    )  # fmt: skip


RESULTS = {"skiprmsnorm_ppl": 3}  # of kernels that do not return one tensor or two


def kernel(name):
    """A kernel's Python function."""

    def launch(*args, **kwargs):
        LOG.say(name)
        if name in RESULTS:
            return [Tensor() for _ in range(RESULTS[name])]
        return kwargs.get("out") if kwargs.get("out") is not None else Tensor()

    launch.__name__ = name
    return launch


def allocated(*args, **kwargs):
    return Tensor()
