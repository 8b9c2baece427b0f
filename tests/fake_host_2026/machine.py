"""What a model process of the fake host runs on: GPU, process group, start arguments, threads.

Every host has a machine of its own. The host's modules say ``from .machine import gpu``: the loader puts the host's machine
where they look for this module.
"""

from __future__ import annotations

import threading
import types
from functools import wraps

from fake_gpu import Event, Gpu, Graph, Pool, Stream, Tensor, blend, rowwise, without_reference
from fake_host import Alone, as_torch_does

from . import turns

HIDDEN = 8
START_ARGUMENTS = {
    "run_mode": "normal", "port": 8000, "nccl_host": "127.0.0.1", "nccl_port": None, "tp": 1, "dp": 1, "nnodes": 1,
    "node_rank": 0, "model_dir": "/models/fake", "model_name": "default_model_name", "data_type": "bfloat16",
    "mtp_mode": None, "mtp_step": 0, "mtp_draft_model_dir": [], "graph_max_batch_size": 4,
    "graph_split_batch_size": 2, "graph_grow_step_size": 2, "graph_max_len_in_batch": 4096, "disable_cudagraph": True,
    "enable_prefill_cudagraph": False, "prefill_cudagraph_max_handle_token": 16, "batch_max_tokens": 64,
    "chunked_prefill_size": 32, "disable_chunked_prefill": False, "enable_tpsp_mix_mode": False,
    "enable_prefill_decode_mixed": False, "enable_decode_microbatch_overlap": False,
    "enable_prefill_microbatch_overlap": False, "enable_dp_prefill_balance": False, "enable_ep_moe": False,
    "enable_torch_memory_saver": False, "enable_rl": False, "enable_profiling": None,
    "disable_flashinfer_allreduce": True, "disable_symm_mem_allreduce": True, "disable_aggressive_schedule": False,
}  # fmt: skip


class Machine(types.ModuleType):
    """``now``: the clock, a list of one float. ``arguments``: start arguments that differ from the usual ones.

    ``config``: the model's. ``peers``: the other ranks of the group. ``free``: infer threads run as the operating system
    lets them; without it one runs at a time, and a test says when (:class:`turns.Turns`). ``others``: how many requests
    for prefill and for decode the other data-parallel ranks have. ``longest_prefill_fails``: how often the last check of
    the start does. ``without``: start arguments that there are not.
    """

    Tensor, HIDDEN = Tensor, HIDDEN
    blend, rowwise, without_reference = staticmethod(blend), staticmethod(rowwise), staticmethod(without_reference)

    def __init__(
        self, name, now, arguments=None, config=None, peers=None, asynchronous=False, free=False, others=(0, 0),
        longest_prefill_fails=0, without=(),
    ):  # fmt: skip
        super().__init__(name)
        self.gpu = Gpu(now, asynchronous)
        given = {**START_ARGUMENTS, **(arguments or {})}
        self.args = types.SimpleNamespace(**{name: value for name, value in given.items() if name not in without})
        self.config = {"model_type": "fake", "n_layer": 2, "full_attention_interval": 1, **(config or {})}
        self.cuda = Cuda(self.gpu)
        self.dist = distributed(self.gpu, self.args, peers or Alone())
        self.turns = turns.Free() if free else turns.Turns()
        self.others, self.longest_prefill_fails = others, longest_prefill_fails
        self.broken = False
        self.calls = []  # (thread, function) of every call of a host function, in order
        self.errors = []  # (thread, error) of threads that have ended with one
        self.events = []  # what the HTTP process tells of
        self.called_back = self.events.append
        self.processes = [2**22 + 1, 2**22 + 2, 2**22 + 3]  # that there are not

    def get_env_start_args(self):
        return self.args

    def trouble(self):
        """Raise the host's own error, if a test wants it."""
        if self.broken:
            raise RuntimeError("the host's own error")

    def called(self, name):
        self.calls.append((threading.current_thread().name, name))

    # torch ----------------------------------------------------------------------------------------------------------

    def no_grad(self):
        """A decorator whose result takes any arguments, and has the names of what it decorates."""

        def decorate(function):
            @wraps(function)
            def decorate_context(*args, **kwargs):
                return function(*args, **kwargs)

            return decorate_context

        return decorate

    def tensor(self, values):
        """On the CPU."""
        return Tensor(len(values), value=tuple(values))

    def empty(self, *shape):
        """On the GPU."""
        return Tensor(*shape, gpu=self.gpu)

    def on_gpu(self, values):
        """A tensor of the GPU that holds these values without a kernel, as those of weights and dummy inputs."""
        return Tensor(len(values), value=tuple(values), gpu=self.gpu)

    def to_gpu(self, source):
        """``source.cuda(non_blocking=True)``"""
        if source is None or source.is_cuda:
            return source
        made = self.empty(*source.shape)
        return made.copy_(source)

    def padded(self, source, count, value):
        """``torch.nn.functional.pad``: ``count`` more rows."""
        made = self.empty(source.shape[0] + count, *source.shape[1:])
        self.gpu.run("pad", lambda rows: (*rows, *[value] * count), made, source)
        return made


class Cuda:
    """``torch.cuda``"""

    def __init__(self, gpu):
        self._gpu, self._in_graph = gpu, {}
        self.stream, self.current_stream = gpu.stream, gpu.current_stream
        self.Event = lambda: Event(gpu)
        self.Stream = lambda: Stream(gpu)
        self.CUDAGraph = lambda: Graph(gpu)
        self.graph_pool_handle = Pool

    def graph(self, cuda_graph, pool=None):
        return self._gpu.graph(cuda_graph, pool)

    def is_current_stream_capturing(self):
        return self._gpu.capturing is not None

    def synchronize(self):
        self._gpu.wait()

    def set_device(self, device):
        pass


def distributed(gpu, args, peers):
    """``torch.distributed``, of a group of ``args.tp`` ranks."""
    dist, registered = types.ModuleType("dist"), [0]

    def together():
        """All peers must be in the same collective of the same graph."""
        registered[0] += 1
        tag = ("eager",) if gpu.capturing is None else ("captured", registered[0])
        gpu.launch(lambda: peers.collective(tag))

    @as_torch_does
    def all_reduce(tensor, op=None, group=None, async_op=False):
        together()
        gpu.run("all_reduce", rowwise("all_reduce"), tensor, tensor)

    @as_torch_does
    def all_gather(tensor_list, tensor, group=None, async_op=False):
        together()
        gpu.run("all_gather", lambda rows: rows, tensor_list[0], tensor)

    @as_torch_does
    def all_gather_into_tensor(output_tensor, input_tensor, group=None, async_op=False):
        ranks = output_tensor.shape[0] // input_tensor.shape[0]
        assert output_tensor.numel() == ranks * input_tensor.numel()
        together()
        gpu.run("gather_into", lambda rows: rows * ranks, output_tensor, input_tensor)

    @as_torch_does
    def reduce_scatter_tensor(output, input, op=None, group=None, async_op=False):
        assert input.numel() == args.tp * output.numel()
        together()
        gpu.run("reduce_scatter", lambda rows: rows[: output.shape[0]], output, input)

    @as_torch_does
    def all_to_all_single(output, input, output_split_sizes=None, input_split_sizes=None, group=None, async_op=False):
        gpu.run("all_to_all", lambda rows: rows, output, input)

    @as_torch_does
    def broadcast(tensor, src=None, group=None, async_op=False, group_src=None):
        gpu.run("broadcast", lambda rows: rows, tensor, tensor)

    def barrier(group=None, async_op=False, device_ids=None):
        pass

    def get_world_size(group=None):
        return args.tp if group is None or group == "nccl" else 2

    for function in (all_reduce, all_gather, all_gather_into_tensor, reduce_scatter_tensor, all_to_all_single, broadcast,
                     barrier, get_world_size):  # fmt: skip
        setattr(dist, function.__name__, function)
    dist.ReduceOp = types.SimpleNamespace(SUM="sum", MAX="max")
    return dist
