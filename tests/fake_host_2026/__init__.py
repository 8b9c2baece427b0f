"""A miniature of LightLLM's main branch of August 2026 (v1.2.0 is the same in all of this); ``fake_host`` is that of July 2025.

Facts that it stands for. Where LightLLM's source can be read, ``tests/contract/test_fake_host_2026.py`` holds names,
parameters and the order of calls against it.

* Forward: ``TpPartBaseModel.forward(model_input)`` copies its input to the GPU, then ``_prefill`` or ``_decode``. In decode
  ``input_ids`` is None until ``_decode`` gathers the tokens on the GPU, where alone they are known. Tensors are on the CPU
  before the call, and on the GPU after it: who reads them then makes the host wait (``gpu.waits``).
* Start: the autotuner's forwards (fewer layers; what fails in them is forgotten), ``_init_padded_req``, decode graphs,
  prefill graphs, ``_check_max_len_infer``; on a thread of the RPC connection. Drafts are built later, and are models of
  the same class with ``is_mtp_draft_model``.
* Two infer threads take turns by the events of an ``OverlapEventPack``. All forwards and samplings are on one overlap
  stream. A step's work on the GPU ends at ``sync_event.record()``: behind ``sample`` come the scatter of its tokens, their
  copies to the CPU and, with speculation, the drafts. The next step is launched before this one's ``_post_handle``.
  ``_close_overlap`` replaces methods of the event pack on the instance. Each round of the loop begins with
  ``_try_read_new_reqs``, which communicates on the default stream and waits.
* An exception in an infer thread ends that thread alone; the other one waits for ever (``turns.Stuck``).
* Batches: with speculation a request has several rows and is as often in the list of requests; with data parallelism there
  are rows of nobody, and forwards without ``sample``; mixed batches are prefills with ``b_is_decode_req``.
* ``InferStateInfo`` has attention states that refer back to it by ``infer_state``. Kernels keep on that state what they
  compute once for each forward and from the lengths of all requests.
* ``CudaGraph._capture_decode(decode_func, infer_state)`` warms up on a shallow copy, whose attention state still refers to
  the original, and deletes what has arrived there. Outputs lie in the graph's pool without being held.
* ``PrefillCudaGraph`` has the layers only, in pieces that are cut at every attention; closures call the attention through
  the layer's attribute.
* Collectives lie inside ``_get_qkv``, ``_get_o`` and ``_ffn``. ``CustomProcessGroup.all_reduce`` chooses FlashInfer, which
  gives its argument other memory (``input_.data = …``), symmetric memory, or NCCL. Layers with linear attention call
  ``_linear_in_proj``, ``att_state1.…_att``, ``_linear_post`` and an all_reduce that lies in none of them.

``make(now)`` returns a host of the model process, ``make_http(now)`` one of the HTTP process. Its modules are loaded when
they are first asked for, or by ``load(imported)``, which calls ``imported(LightLLM's name of the module, module)`` after each,
as an import hook is called.
"""

from __future__ import annotations

import sys
import threading
import time
import types
from pathlib import Path

import host_sources
from fake_gpu import Tensor

from . import turns
from .machine import Machine

HERE = Path(__file__).parent
_ROUTER = "lightllm.server.router.model_infer"
_BASE = "lightllm.common.basemodel"
# In the order in which they are imported. Where one file here stands for several there, the first is named.
MODULES = {
    "overlap_events": f"{_ROUTER}.mode_backend.overlap_events",
    "batch_objs": f"{_BASE}.batch_objs",
    "base_att": f"{_BASE}.attention.base_att",
    "infer_struct": f"{_BASE}.infer_struct",
    "communication_op": "lightllm.distributed.communication_op",
    "layer_infer": f"{_BASE}.layer_infer.template.transformer_layer_infer_template",
    "cuda_graph": f"{_BASE}.cuda_graph",
    "prefill_cuda_graph": f"{_BASE}.prefill_cuda_graph",
    "gather_token_id": f"{_BASE}.triton_kernel.gather_token_id",
    "req_manager": "lightllm.common.req_manager",
    "basemodel": f"{_BASE}.basemodel",
    "models": "lightllm.models",
    "infer_batch": f"{_ROUTER}.infer_batch",
    "generic_pre_process": f"{_ROUTER}.mode_backend.generic_pre_process",
    "generic_post_process": f"{_ROUTER}.mode_backend.generic_post_process",
    "base_backend": f"{_ROUTER}.mode_backend.base_backend",
    "chunked_prefill": f"{_ROUTER}.mode_backend.chunked_prefill.impl",
    "dp_backend": f"{_ROUTER}.mode_backend.dp_backend.impl",
    "model_rpc": f"{_ROUTER}.model_rpc",
}
HTTP_MODULES = {
    "httpserver": "lightllm.server.httpserver.manager",
    "health_monitor": "lightllm.server.health_monitor.manager",
}
_loading = threading.Lock()


def make(
    now, tp=1, layers=2, sizes=(1, 2, 4), graphs=False, prefill_graphs=False, mtp=0, eagle=False, custom=False, tpsp=False,
    mixed=False, linear=False, dp=1, microbatches=False, saver=False, changes=(), namespace=None, arguments=None, **machine,
):  # fmt: skip
    """A host whose time is ``now``, a list of one float.

    ``sizes``: rows of decode graphs, before speculation. ``mtp``: steps of speculation. ``custom``: all_reduce by FlashInfer and
    symmetric memory where they fit. ``tpsp``: tokens are split over the ranks. ``linear``: layers take turns, with linear
    attention and with full attention. ``microbatches``: two at once. ``saver``: torch_memory_saver. ``changes``: to its
    sources, which then find ``namespace``. ``arguments``: more of its start arguments. The rest is for :class:`Machine`.
    """
    given = {
        "tp": tp, "dp": dp, "disable_cudagraph": not graphs, "enable_prefill_cudagraph": prefill_graphs,
        "graph_max_batch_size": max(sizes), "graph_split_batch_size": sum(size <= 2 for size in sizes) or 1,
        "mtp_step": mtp, "mtp_mode": ("eagle_with_att" if eagle else "vanilla_with_att") if mtp else None,
        "disable_flashinfer_allreduce": not custom, "disable_symm_mem_allreduce": not custom,
        "enable_tpsp_mix_mode": tpsp or microbatches, "enable_prefill_decode_mixed": mixed,
        "enable_decode_microbatch_overlap": microbatches, "enable_prefill_microbatch_overlap": microbatches,
        "enable_torch_memory_saver": saver, **(arguments or {}),
    }  # fmt: skip
    config = {"n_layer": layers, "full_attention_interval": 2 if linear else 1}
    return Host(now, changes, namespace or {}, {"arguments": given, "config": config, **machine})


def make_http(now, changes=(), namespace=None, **machine):
    """The HTTP process's modules and the health monitor's; ``httpserver.serve`` and ``health_monitor.serve`` ask them."""
    return Host(now, changes, namespace or {}, machine, HTTP_MODULES)


class Host:
    """``errors``: of infer threads that ended with one. ``calls``: (thread, function) of host functions, in order."""

    def __init__(self, now, changes, namespace, options, names=MODULES) -> None:
        name = f"_fake_host_{id(self)}"
        self.now, self.machine = now, Machine(f"{name}.machine", now, **options)
        self.gpu, self.dist, self.args = self.machine.gpu, self.machine.dist, self.machine.args
        self.calls, self.turns = self.machine.calls, self.machine.turns
        self.errors = self.turns.errors
        self.modules = {}
        self.on_load = []  # functions that are called with each module's name and module, before an import hook is
        self.renamed = ()  # modules that have another name in this host
        self.backend = None
        self._name, self._changes, self._namespace = name, changes, namespace
        self._names, self._requests, self._by_stem = names, 0, {}

    def load(self, imported=lambda name, module: None) -> Host:
        with _loading:
            sys.modules[self._name] = types.ModuleType(self._name)
            sys.modules[f"{self._name}.machine"] = self.machine
            try:
                for stem, usual in self._names.items():
                    path, whole = HERE / f"{stem}.py", f"{self._name}.{stem}"
                    report = self.machine.called
                    name = f"{usual}_elsewhere" if stem in self.renamed else usual
                    module = host_sources.load(name, path, self._changes, report, self._name, **self._namespace)
                    sys.modules[whole] = self.modules[name] = self._by_stem[stem] = module
                    for each in (*self.on_load, imported):
                        each(name, module)
            finally:
                for name in [each for each in sys.modules if each.split(".")[0] == self._name]:
                    del sys.modules[name]
        return self

    def __getattr__(self, stem):
        if stem.startswith("_") or stem not in self._names:
            raise AttributeError(stem)
        if not self.modules:
            self.load()
        return self._by_stem[stem]

    @property
    def classes(self):
        """All that have been made for this host."""
        own = [value for module in self.modules.values() for value in vars(module).values() if isinstance(value, type)]
        return [each for each in dict.fromkeys(own) if each.__module__ in self.modules]

    # A server ---------------------------------------------------------------------------------------------------------

    def start(self, support_overlap=True):
        """Build the model, on the RPC connection's thread, and start the infer threads. Returns the backend."""
        rpc, failed = self.model_rpc.ModelRpcServer(self.args, 0, 0, self.args.tp, None), []

        def init_model():
            try:
                rpc.exposed_init_model({})
            except BaseException as error:  # noqa: BLE001 - raised below, in the test's thread
                failed.append(error)

        connection = threading.Thread(target=init_model, name="rpc")
        connection.start()
        connection.join()
        if failed:
            raise failed[0]
        self.backend = rpc.backend
        self.backend.support_overlap = support_overlap
        return self.backend

    def submit(self, prompt=(5, 6, 7), max_new_tokens=4, request_id=None):
        """A request of the router's; its ``out`` are the tokens that its client has got."""
        self._requests += 8
        request_id = self._requests if request_id is None else request_id
        made = self.infer_batch.ShmReq(request_id, prompt, max_new_tokens)
        self.backend.shm_req_manager[request_id] = made
        self.backend.shm_reqs_io_buffer.write_obj((request_id, request_id, {"images": [], "audios": []}, 0))
        return made

    def abort(self, request):
        self.backend.shm_reqs_io_buffer.write_obj(request.request_id)

    @property
    def busy(self) -> bool:
        buffer, context = self.backend.shm_reqs_io_buffer, self.infer_batch.g_infer_context
        return buffer.is_ready() or bool(context.infer_req_ids)

    def step(self) -> str:
        """One thread's turn; returns its name."""
        return self.turns.step()

    def run(self, seconds=turns.PATIENCE) -> None:
        """Until there are no requests any more. Raises what an infer thread has raised."""
        until = time.monotonic() + seconds
        while self.busy and not self.errors:
            self.step()
            assert time.monotonic() < until, "the requests do not end"
        self.raise_errors()

    def raise_errors(self) -> None:
        for _, error in self.errors:
            raise error

    def stop(self) -> None:
        self.turns.close()


__all__ = ["HTTP_MODULES", "MODULES", "Host", "Tensor", "make", "make_http"]
