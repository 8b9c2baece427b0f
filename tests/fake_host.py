"""A miniature LightLLM with the facts that decide the design: instance partials, names bound at import, step order.

Every kernel advances a manual clock by a known time, so that tests can expect exact durations.
"""

from __future__ import annotations

import contextlib
import copy
import types
from functools import partial, wraps

from fake_gpu import COST, CaptureBroken, Gpu, Tensor  # noqa: F401 - tests take the GPU's names from here

LAYERS = 2  # of a model, unless more are asked for
# What the operators of a step's layers are measured to take: each call on its own.
LAYER_SECONDS = {
    "attn_norm": [COST["att_norm"]] * LAYERS,
    "qkv_proj": [COST["qkv"]] * LAYERS,
    "kv_write": [COST["kv"]] * LAYERS,
    "attention": [COST["attention"]] * LAYERS,
    "o_proj": [COST["o"]] * LAYERS,
    "residual": [COST["add"]] * (2 * LAYERS),
    "ffn_norm": [COST["ffn_norm"]] * LAYERS,
    "ffn": [COST["ffn"]] * LAYERS,
}


class Alone:
    """The peers of a rank that has none. Others exchange what a captured collective was registered as."""

    def exchange(self, what) -> None:
        """Called by every rank; raises when they do not say the same."""

    def collective(self, tag) -> None:
        """A custom all_reduce runs: every peer must be in the same one of the same graph."""


class ModelInput:
    def __init__(self, batch_size, total_token_num, is_prefill, tokens=None, value=0):
        self.batch_size = batch_size
        self.total_token_num = total_token_num
        self.is_prefill = is_prefill
        self.input_ids = Tensor(tokens or batch_size, value=value)
        self.b_seq_len = Tensor(batch_size, value=(total_token_num // batch_size,) * batch_size)
        self.b_req_idx = Tensor(batch_size, value=(8,) * batch_size)


def answer(model_input):
    """What the host computes of this input: its sample returns it."""
    return ("logits", model_input.input_ids.value, ("blocks of", model_input.total_token_num))


class InferReq:
    def __init__(self, req_id, length=1, cur_kv_len=0):
        self.req_id = req_id
        self.length = length
        self.cur_kv_len = cur_kv_len

    def get_chuncked_input_token_len(self):
        return self.length


def as_torch_does(function):
    """The names of the wrapped function for those who read them, and any arguments: torch logs what its collectives raise."""

    @wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def make(
    now,
    tp=1,
    layers=LAYERS,
    sizes=(1, 2, 4),
    shared_output=True,
    peers=None,
    longest_prefill_fails=0,
    custom=False,
    tpsp=False,
):
    """A fresh host whose time is ``now`` (a list of one float). ``tp`` > 1: with collectives.

    ``longest_prefill_fails``: how often its last check at the start does. ``sizes``: batch sizes of CUDA graphs.
    ``shared_output``: all graphs write their logits to one place, as with LightLLM's tensor cache; without it each
    has its own. ``peers``: the other ranks of the group. ``custom``: all_reduce and all_gather_into_tensor by kernels of
    the host's own. ``tpsp``: tokens are split over the ranks between its operators (--enable_tpsp_mix_mode).
    """
    gpu, failing = Gpu(now), [longest_prefill_fails]
    peers = peers or Alone()

    def work(name):
        gpu.run(name)

    dist = types.ModuleType("dist")

    registered = [0]

    @as_torch_does
    def all_reduce(tensor, op=None, group=None, async_op=False):
        # A captured one reads the buffers that its peers registered for the very same node of the very same graph.
        registered[0] += 1
        tag = ("eager",) if gpu.capturing is None else ("captured", registered[0])
        gpu.launch(lambda: peers.collective(tag))
        work("all_reduce")

    @as_torch_does
    def all_gather(tensor_list, tensor, group=None, async_op=False):
        assert len(tensor_list) == tp
        work("all_gather")

    @as_torch_does
    def all_gather_into_tensor(output_tensor, input_tensor, group=None, async_op=False):
        assert output_tensor.numel() == tp * input_tensor.numel()
        work("gather_into")

    @as_torch_does
    def reduce_scatter_tensor(output, input, op=None, group=None, async_op=False):
        assert input.numel() == tp * output.numel()
        work("reduce_scatter")

    @as_torch_does
    def all_to_all_single(output, input, output_split_sizes=None, input_split_sizes=None, group=None, async_op=False):
        work("all_to_all")

    dist.all_reduce, dist.all_gather, dist.all_to_all_single = all_reduce, all_gather, all_to_all_single
    dist.all_gather_into_tensor, dist.reduce_scatter_tensor = all_gather_into_tensor, reduce_scatter_tensor

    class CustomProcessGroup:
        def all_reduce(self, input_):
            return work("all_reduce") if custom else dist.all_reduce(input_)

        def all_gather_into_tensor(self, output_, input_, async_op=False):
            if custom:
                return work("gather_into")
            return dist.all_gather_into_tensor(output_, input_, group=None, async_op=async_op)

    group = CustomProcessGroup()

    shared_logits = Tensor(max(sizes), 8)

    class Pre:
        def context_forward(self, ids, state, weight):
            work("embedding")
            if tp > 1:
                group.all_reduce(Tensor(*ids.shape, 8))
            return Tensor(*ids.shape, 8)

        token_forward = context_forward

        def tpsp_context_forward(self, ids, state, weight):
            """Calls the other entry, and leaves each rank its part of the tokens."""
            hidden = self.context_forward(ids, state, weight)
            work("pad_copy")
            return Tensor(-(-hidden.shape[0] // tp), 8)

        tpsp_token_forward = tpsp_context_forward

    class Post:
        def token_forward(self, hidden, state, weight):
            work("lm_head")
            if tp > 1:
                dist.all_gather([Tensor(4, 8)] * tp, Tensor(4, 8))
                work("lm_head")
            logits = shared_logits if shared_output and state.is_cuda_graph else Tensor(*hidden.shape)
            ids = state.ids

            def kernel():
                logits.value = ("logits", ids.value, state.blocks.value)

            gpu.launch(kernel)
            return logits

        def tpsp_token_forward(self, hidden, state, weight):
            if tp > 1:
                dist.all_gather([hidden] * tp, hidden)
            return self.token_forward(Tensor(*state.ids.shape, 8), state, weight)

    def blocks(state):
        """What the first layer's attention computes once and keeps for the others, as MLA's kernels do."""
        if not hasattr(state, "blocks"):
            made = state.blocks = Tensor(1)
            lengths = state.lengths

            def kernel():
                made.value = ("blocks of", lengths.value)

            gpu.launch(kernel)

    class Residual:
        """The tensor that goes through all layers."""

        def add_(self, other):
            work("add")

    residual = Residual()

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
            blocks(state)
            work("attention")
            return q

        def _context_attention(self, q, kv, state, weight, out=None):
            blocks(state)
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

        def _tpsp_get_qkv(self, hidden, cache_kv, state, weight):
            if tp > 1:
                group.all_gather_into_tensor(Tensor(tp * hidden.shape[0], 8), hidden)
            work("qkv")
            return hidden, cache_kv

        def _tpsp_get_o(self, hidden, state, weight):
            work("o")
            if tp > 1:
                dist.reduce_scatter_tensor(
                    hidden, Tensor(tp * hidden.shape[0], 8), op="sum", group=None, async_op=False
                )
            return hidden

        def _tpsp_ffn(self, hidden, state, weight):
            gathered = Tensor(tp * hidden.shape[0], 8)
            if tp > 1:
                group.all_gather_into_tensor(gathered, hidden)
            work("ffn")
            if tp > 1:
                dist.reduce_scatter_tensor(hidden, gathered, op="sum", group=None, async_op=False)
            return hidden

        def tpsp_context_forward(self, hidden, state, weight):
            self._att_norm(hidden, state, weight)
            self._tpsp_get_qkv(hidden, None, state, weight)
            self._copy_kv_to_mem_cache(None, None, None)
            self._context_attention_kernel(hidden, None, state, weight)
            return self._tpsp_rest(hidden, state, weight)

        def tpsp_token_forward(self, hidden, state, weight):
            self._att_norm(hidden, state, weight)
            self._tpsp_get_qkv(hidden, None, state, weight)
            self._copy_kv_to_mem_cache(None, None, None)
            self._token_attention_kernel(hidden, state, weight)
            return self._tpsp_rest(hidden, state, weight)

        def _tpsp_rest(self, hidden, state, weight):
            self._tpsp_get_o(hidden, state, weight)
            residual.add_(hidden)
            self._ffn_norm(hidden, state, weight)
            self._tpsp_ffn(hidden, state, weight)
            residual.add_(hidden)
            return hidden

        def context_forward(self, hidden, state, weight):
            self._att_norm(hidden, state, weight)
            self._get_qkv(hidden, None, state, weight)
            self._copy_kv_to_mem_cache(None, None, None)
            self._context_attention_kernel(hidden, None, state, weight)
            return self._rest(hidden, state, weight)

        def token_forward(self, hidden, state, weight):
            self._att_norm(hidden, state, weight)
            self._get_qkv(hidden, None, state, weight)
            self._copy_kv_to_mem_cache(None, None, None)
            self._token_attention_kernel(hidden, state, weight)
            return self._rest(hidden, state, weight)

        def _rest(self, hidden, state, weight):
            self._get_o(hidden, state, weight)
            if tp > 1:
                group.all_reduce(hidden)
            residual.add_(hidden)
            self._ffn_norm(hidden, state, weight)
            self._ffn(hidden, state, weight)
            if tp > 1:
                group.all_reduce(hidden)
            residual.add_(hidden)
            return hidden

    def token_state(model_input, broken):
        state = InferState()
        state.is_prefill, state.is_cuda_graph, state.broken = model_input.is_prefill, False, broken
        state.ids, state.lengths = model_input.input_ids, Tensor(1, value=model_input.total_token_num)
        state.dist_group, state.max_len_in_batch = group, 1
        return state

    @contextlib.contextmanager
    def lightllm_capture_graph(dist_group=None):
        try:
            yield
        finally:
            peers.exchange(("registered", registered[0]))

    class CudaGraph:
        enable_decode_microbatch_overlap = False

        def __init__(self):
            self.graph = {}
            self.mempool = object()
            self.graph_max_len_in_batch = 4096
            self.cuda_graph_batch_sizes = sorted(sizes)

        def can_run(self, batch_size, max_len_in_batch):
            return batch_size <= self.cuda_graph_batch_sizes[-1] and max_len_in_batch <= self.graph_max_len_in_batch

        def find_closest_graph_batch_size(self, batch_size):
            return next(size for size in self.cuda_graph_batch_sizes if size >= batch_size)

        def warmup(self, model):
            for size in self.cuda_graph_batch_sizes[::-1]:
                model.forward(ModelInput(size, 2 * size, False))

        def capture_decode(self, decode_func, input_ids, infer_state, input_ids1=None, infer_state1=None):
            return self._capture_decode(decode_func, input_ids, infer_state)

        def _capture_decode(self, decode_func, input_ids, infer_state):
            infer_state.max_len_in_batch = 4096
            decode_func(input_ids, copy.copy(infer_state))
            with cuda_graph.lightllm_capture_graph(infer_state.dist_group):
                graph = gpu.capture(self.mempool, lambda: decode_func(input_ids, infer_state))
            self.graph[input_ids.shape[0]] = (graph, input_ids, infer_state, graph.output)
            graph.replay()
            return graph.output

        def replay(self, input_ids, infer_state, input_ids1=None, infer_state1=None):
            return self._replay(input_ids, infer_state)

        def _replay(self, input_ids, infer_state):
            graph, graph_ids, graph_state, output = self.graph[input_ids.shape[0]]
            graph_ids.value = input_ids.value
            graph_state.lengths.value = infer_state.lengths.value
            graph.replay()
            return output

    class TpPartBaseModel:
        def __init__(self, kvargs=None):
            self.config = {"model_type": "fake"}
            self.data_type = "torch.float16"
            self.weight_dir_ = "/models/fake"
            self.max_seq_length = 4096
            self.req_manager = types.SimpleNamespace(req_to_token_indexs=Tensor(9, 4096))
            self.pre_infer, self.post_infer = Pre(), Post()
            self.layers_infer = [Layer(number) for number in range(layers)]
            self.graph = None
            self.broken = False
            self._init_padded_req()
            if kvargs == "graphs":
                self.graph = cuda_graph.CudaGraph()
                self.graph.warmup(self)
            self._check_max_len_infer()

        def _check_max_len_infer(self):
            """The last of its start: raises so often because memory is short."""
            failing[0] -= 1
            if failing[0] >= 0:
                raise RuntimeError("check max len infer fail, you can try: a smaller --mem_fraction")
            self.forward(ModelInput(1, 64, True))

        def _init_padded_req(self):
            self.forward(ModelInput(1, 1, True))

        def forward(self, model_input):
            state = token_state(model_input, self.broken)
            if self.graph is not None and not model_input.is_prefill:
                if self.broken:
                    raise RuntimeError("the host's own error")
                padded = Tensor(
                    self.graph.find_closest_graph_batch_size(model_input.batch_size), value=model_input.input_ids.value
                )
                state.ids = padded
                if padded.shape[0] not in self.graph.graph:
                    state.is_cuda_graph = True
                    return self.graph.capture_decode(self._token_forward, padded, state)
                return self.graph.replay(padded, state)
            return self._token_forward(model_input.input_ids, state)

        def _token_forward(self, ids, state):
            mode = "tpsp_" if tpsp else ""
            name = f"{mode}context_forward" if state.is_prefill else f"{mode}token_forward"
            hidden = getattr(self.pre_infer, name)(ids, state, None)
            for layer in self.layers_infer:
                hidden = getattr(layer, name)(hidden, state, None)
            return getattr(self.post_infer, f"{mode}token_forward")(hidden, state, None)

    def sample(logits, reqs, eos_id=(2,)):
        work("sample")
        return logits.value if isinstance(logits, Tensor) else logits

    class ModeBackend:
        def __init__(self):
            self.cache = {}

        def remove_batch(self, batch_id):
            self.cache.pop(batch_id, None)

        def _try_read_new_reqs(self):
            """The branch with two threads per model asks this in every round of its loop."""
            return "read"

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

    cuda_graph = _module(CudaGraph=CudaGraph, lightllm_capture_graph=lightllm_capture_graph)
    host = Host(
        now=now,
        gpu=gpu,
        dist=dist,
        basemodel=_module(TpPartBaseModel=TpPartBaseModel),
        cuda_graph=cuda_graph,
        communication_op=_module(CustomProcessGroup=CustomProcessGroup),
        post_process=_module(sample=sample),
        base_backend=_module(ModeBackend=ModeBackend),
        model_rpc=_module(ModelRpcServer=ModelRpcServer),
        classes=(Pre, Post, Layer, CudaGraph, TpPartBaseModel, CustomProcessGroup, ModeBackend, ModelRpcServer),
    )
    return host


class Host(types.SimpleNamespace):
    """A host's modules, and what a test moves or looks at."""

    @property
    def modules(self):
        """LightLLM's names of them, in the order in which they are imported."""
        base, router = "lightllm.common.basemodel", "lightllm.server.router.model_infer"
        return {
            "lightllm.distributed.communication_op": self.communication_op,
            f"{base}.basemodel": self.basemodel,
            f"{base}.cuda_graph": self.cuda_graph,
            f"{router}.mode_backend.generic_post_process": self.post_process,
            f"{router}.mode_backend.base_backend": self.base_backend,
            f"{router}.model_rpc": self.model_rpc,
        }

    renamed = ()  # modules that have another name in this host

    def load(self, imported):
        """Call ``imported(name, module)`` for each module, as an import hook is called."""
        elsewhere = [getattr(self, each) for each in self.renamed]
        for name, module in self.modules.items():
            imported(f"{name}_elsewhere" if module in elsewhere else name, module)


def serve(host, kvargs, steps, started=lambda: None):
    """A server's life, in the host's own words: the answer to each step, or the type and words of what it raised.

    ``steps``: (prefill, batch, context, value, whether the host's own code raises). ``started`` is called between the two.
    """
    model = host.basemodel.TpPartBaseModel(kvargs)
    rpc = host.model_rpc.ModelRpcServer(model)
    started()
    answers = []
    for prefill, batch, context, value, broken in steps:
        rpc.waiting.append(
            (ModelInput(batch, context, prefill, value=value), [InferReq(8 + each) for each in range(batch)])
        )
        model.broken = broken
        try:
            answers.append(rpc.decode())
        except Exception as error:  # noqa: BLE001 - that is an answer as well
            answers.append((type(error), str(error)))
        rpc.decode()  # nothing to do
    return answers


def make_old(now, layers=LAYERS):
    """OLD: one forward with many arguments, no graphs, no hook before the first forward."""
    host = make(now, layers=layers)
    new_model = host.basemodel.TpPartBaseModel

    class TpPartBaseModel:
        def __init__(self, kvargs=None):
            self.config, self.data_type, self.weight_dir_ = {}, "torch.float16", "/models/old"
            inner = new_model()
            self.pre_infer, self.post_infer, self.layers_infer = inner.pre_infer, inner.post_infer, inner.layers_infer

        _token_forward = new_model._token_forward

        def forward(self, batch_size, total_token_num, max_len_in_batch, input_ids, b_req_idx=None, is_prefill=True):
            return self._token_forward(input_ids, old_state(input_ids, is_prefill))

    host.basemodel = _module(TpPartBaseModel=TpPartBaseModel)
    host.classes = (*host.classes, TpPartBaseModel)
    return host


def old_state(ids, is_prefill):
    state = InferState()
    state.is_prefill, state.is_cuda_graph, state.broken = is_prefill, False, False
    state.ids, state.lengths = ids, Tensor(1, value=4)
    return state


class InferState:
    """Attributes come and go, as on LightLLM's."""


def _module(**names):
    module = types.ModuleType("fake")
    vars(module).update(names)
    return module


class FinishStatus:
    def __init__(self, reason=None):
        self.reason = reason

    def is_finished(self):
        return self.reason is not None

    def get_finish_reason(self):
        return self.reason


class SamplingParams:
    """What HTTP endpoints make of a request's parameters."""

    def __init__(self, max_new_tokens=4):
        self.max_new_tokens, self.best_of, self.temperature, self.top_p, self.top_k = max_new_tokens, 1, 1.0, 1.0, -1
        self.stop_sequences = "a secret of the caller's"
        self.group_request_id = -1


class HttpRequest:
    def __init__(self, path="/generate", **headers):
        self.headers = headers
        self.url = types.SimpleNamespace(path=path, hostname="server.example")


HTTP_ARGS = types.SimpleNamespace(
    nccl_host="127.0.0.1", nccl_port=28765, dp=1, nnodes=1, port=8080, model_dir="/models/fake", model_name="default_model_name"
)  # fmt: skip


def make_http(old=False, submit=None, tick=lambda: None):
    """LightLLM's HTTP side: tokenises, gives a request its number, hands it on, and yields what comes back.

    ``submit(number, prompt tokens, sampling_params)`` → an iterable of finish reasons, one for each token, None until the
    last; an exception among them is raised. ``tick`` is called where time passes.
    """

    async def answer(number, prompt_ids, sampling_params, log):
        try:
            for reason in (submit or _four_tokens)(number, prompt_ids, sampling_params):
                tick()
                if isinstance(reason, BaseException):
                    raise reason
                yield number, "an answer", {"prompt_tokens": len(prompt_ids)}, FinishStatus(reason)
        finally:
            tick()
            log.append(("closed", number))

    class ReqStatus:
        def __init__(self, req_id, multimodal_params):
            self.req_id = req_id

    class NewManager:
        def __init__(self):
            self.args, self.log, self._next = HTTP_ARGS, [], 0

        async def _encode(self, prompt, multimodal_params, sampling_params):
            if prompt == "too long":
                raise ValueError("the prompt is too long: a secret")
            tick()
            return list(prompt)

        async def generate(self, prompt, sampling_params, multimodal_params, request, is_health_req=False):
            self.log.append(("began", prompt))
            if not is_health_req:
                self._next += 8
                sampling_params.group_request_id = self._next
            number = sampling_params.group_request_id
            prompt_ids = await self._encode(prompt, multimodal_params, sampling_params)
            async for item in answer(number, prompt_ids, sampling_params, self.log):
                yield item

    class OldManager:
        def __init__(self):
            self.args, self.log = HTTP_ARGS, []

        async def generate(self, prompt, sampling_params, group_request_id, multimodal_params, request=None):
            self.log.append(("began", prompt))
            if prompt == "too long":
                raise ValueError("the prompt is too long: a secret")
            tick()
            module.ReqStatus(group_request_id, multimodal_params)
            async for item in answer(group_request_id, list(prompt), sampling_params, self.log):
                yield item

    manager = OldManager if old else NewManager
    module = _module(HttpServerManager=manager, ReqStatus=ReqStatus)
    return module


def _four_tokens(number, prompt_ids, sampling_params):
    return [None, None, None, "length"]
