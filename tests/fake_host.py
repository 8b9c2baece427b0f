"""A miniature LightLLM with the facts that decide the design: instance partials, names bound at import, step order.

Every kernel advances a manual clock by a known time, so that tests can expect exact durations.
"""

from __future__ import annotations

import types
from functools import partial

# Seconds that each kernel of a fake layer takes; powers of two, so that sums are exact in floating point.
COST = {
    "embedding": 2**-10,
    "att_norm": 2**-12,
    "qkv": 2**-9,
    "kv": 2**-13,
    "attention": 2**-8,
    "o": 2**-11,
    "add": 2**-14,
    "ffn_norm": 2**-12,
    "ffn": 2**-7,
    "lm_head": 2**-9,
    "all_reduce": 2**-6,
    "sample": 2**-10,
    "between": 2**-5,
}


class Tensor:
    """Only what is asked of one: a shape."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def numel(self) -> int:
        total = 1
        for size in self.shape:
            total *= size
        return total

    def element_size(self) -> int:
        return 2


class ModelInput:
    def __init__(self, batch_size, total_token_num, is_prefill, tokens=None):
        self.batch_size = batch_size
        self.total_token_num = total_token_num
        self.is_prefill = is_prefill
        self.input_ids = Tensor(tokens or batch_size)


class InferReq:
    def __init__(self, req_id, length=1, cur_kv_len=0):
        self.req_id = req_id
        self.length = length
        self.cur_kv_len = cur_kv_len

    def get_chuncked_input_token_len(self):
        return self.length


def make(now, tp=1, layers=2):
    """A fresh host whose time is ``now`` (a list of one float). ``tp`` > 1: with collectives."""

    def work(name):
        now[0] += COST[name]

    dist = types.ModuleType("dist")

    def all_reduce(tensor, op=None, group=None, async_op=False):
        work("all_reduce")

    def all_gather(tensors, tensor, group=None, async_op=False):
        work("all_reduce")

    dist.all_reduce, dist.all_gather = all_reduce, all_gather

    class CustomProcessGroup:
        def all_reduce(self, input_):
            return dist.all_reduce(input_)

    group = CustomProcessGroup()

    class Pre:
        def context_forward(self, ids, state, weight):
            work("embedding")
            if tp > 1:
                group.all_reduce(Tensor(*ids.shape, 8))
            return Tensor(*ids.shape, 8)

        token_forward = context_forward

    class Post:
        def token_forward(self, hidden, state, weight):
            work("lm_head")
            if tp > 1:
                dist.all_gather([Tensor(4, 8)] * tp, Tensor(4, 8))
                work("lm_head")
            return "logits"

    class Layer:
        def __init__(self, number):
            self.layer_num_ = number
            # As LightLLM does: bound per instance, from one of several functions of other names.
            self._att_norm = partial(Layer._rms_norm, self, "att_norm")
            self._ffn_norm = partial(Layer._rms_norm, self, "ffn_norm")
            self._token_attention_kernel = partial(Layer._token_decode_attention_flashdecoding, self)
            self._context_attention_kernel = partial(Layer._context_attention, self)
            self._copy_kv_to_mem_cache = partial(Layer._copy_kv, self)

        def _rms_norm(self, name, hidden, state, weight):
            work(name)
            return hidden

        def _get_qkv(self, hidden, cache_kv, state, weight):
            work("qkv")
            return hidden, cache_kv

        def _copy_kv(self, buffer, index, manager):
            work("kv")

        def _token_decode_attention_flashdecoding(self, q, state, weight, out=None):
            work("attention")
            return q

        def _context_attention(self, q, kv, state, weight, out=None):
            work("attention")
            return q

        def _get_o(self, hidden, state, weight):
            work("o")
            return hidden

        def _ffn(self, hidden, state, weight):
            if getattr(state, "broken", False):
                raise RuntimeError("the host's own error")
            work("ffn")
            return hidden

        def context_forward(self, hidden, state, weight):
            return self._forward(hidden, state, weight, partial(self._context_attention_kernel, hidden, None))

        def token_forward(self, hidden, state, weight):
            return self._forward(hidden, state, weight, partial(self._token_attention_kernel, hidden))

        def _forward(self, hidden, state, weight, attention):
            self._att_norm(hidden, state, weight)
            self._get_qkv(hidden, None, state, weight)
            self._copy_kv_to_mem_cache(None, None, None)
            attention(state, weight)
            self._get_o(hidden, state, weight)
            if tp > 1:
                group.all_reduce(hidden)
            work("add")
            self._ffn_norm(hidden, state, weight)
            self._ffn(hidden, state, weight)
            if tp > 1:
                group.all_reduce(hidden)
            work("add")
            return hidden

    class CudaGraph:
        def __init__(self):
            self.graph = {}

        def capture_decode(self, decode_func, input_ids, infer_state, input_ids1=None, infer_state1=None):
            self.graph[input_ids.shape[0]] = True
            return decode_func(input_ids, infer_state)

        def replay(self, input_ids, infer_state, input_ids1=None, infer_state1=None):
            work("ffn")
            return "logits"

    class TpPartBaseModel:
        def __init__(self, kvargs=None):
            self.config = {"model_type": "fake"}
            self.data_type = "torch.float16"
            self.weight_dir_ = "/models/fake"
            self.pre_infer, self.post_infer = Pre(), Post()
            self.layers_infer = [Layer(number) for number in range(layers)]
            self.graph = None
            self.broken = False
            self._init_padded_req()
            if kvargs == "graphs":
                self.graph = CudaGraph()
                self.forward(ModelInput(4, 8, False))

        def _init_padded_req(self):
            self.forward(ModelInput(1, 1, True))

        def forward(self, model_input):
            state = types.SimpleNamespace(is_prefill=model_input.is_prefill, broken=self.broken)
            if self.graph is not None and not model_input.is_prefill:
                padded = Tensor(4)
                if 4 not in self.graph.graph:
                    return self.graph.capture_decode(self._token_forward, padded, state)
                return self.graph.replay(padded, state)
            return self._token_forward(model_input.input_ids, state)

        def _token_forward(self, ids, state):
            name = "context_forward" if state.is_prefill else "token_forward"
            hidden = getattr(self.pre_infer, name)(ids, state, None)
            for layer in self.layers_infer:
                hidden = getattr(layer, name)(hidden, state, None)
            return self.post_infer.token_forward(hidden, state, None)

    def sample(logits, reqs, eos_id=(2,)):
        work("sample")
        return logits

    class ModeBackend:
        def __init__(self):
            self.cache = {}

        def remove_batch(self, batch_id):
            self.cache.pop(batch_id, None)

    class ModelRpcServer:
        def __init__(self, model):
            self.model = model
            self.waiting = []

        def decode(self):
            """The router calls this about every 10 ms, with or without requests."""
            if not self.waiting:
                return None
            model_input, requests = self.waiting.pop(0)
            logits = self.model.forward(model_input)
            work("between")
            # The name that was bound when this module was imported: what is in the module now.
            return host.post_process.sample(logits, requests)

    host = types.SimpleNamespace(
        now=now,
        dist=dist,
        basemodel=_module(TpPartBaseModel=TpPartBaseModel),
        cuda_graph=_module(CudaGraph=CudaGraph),
        communication_op=_module(CustomProcessGroup=CustomProcessGroup),
        post_process=_module(sample=sample),
        base_backend=_module(ModeBackend=ModeBackend),
        model_rpc=_module(ModelRpcServer=ModelRpcServer),
        classes=(Pre, Post, Layer, CudaGraph, TpPartBaseModel, CustomProcessGroup, ModeBackend, ModelRpcServer),
    )
    return host


def make_old(now, layers=2):
    """OLD: one forward with many arguments, no graphs, no seam before the first forward."""
    host = make(now, layers=layers)
    new_model = host.basemodel.TpPartBaseModel

    class TpPartBaseModel:
        def __init__(self, kvargs=None):
            self.config, self.data_type, self.weight_dir_ = {}, "torch.float16", "/models/old"
            inner = new_model()
            self.pre_infer, self.post_infer, self.layers_infer = inner.pre_infer, inner.post_infer, inner.layers_infer

        _token_forward = new_model._token_forward

        def forward(self, batch_size, total_token_num, max_len_in_batch, input_ids, b_req_idx=None, is_prefill=True):
            return self._token_forward(input_ids, types.SimpleNamespace(is_prefill=is_prefill, broken=False))

    host.basemodel = _module(TpPartBaseModel=TpPartBaseModel)
    host.classes = (*host.classes, TpPartBaseModel)
    return host


def _module(**names):
    module = types.ModuleType("fake")
    vars(module).update(names)
    return module
