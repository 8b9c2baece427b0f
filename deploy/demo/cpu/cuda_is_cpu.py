"""Run an unchanged LightLLM server where there is no GPU.

To torch, "cuda" becomes "cpu" and "nccl" becomes "gloo"; Triton interprets its kernels. The processes, layers, kernels,
collectives and tokens are the real ones; how long anything takes says nothing about a GPU.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import host_streams
import recorded_graphs


def install_with_torch() -> None:
    """Wait for the process to import torch: those that never do (an exporter, a resource tracker) stay as they are."""
    os.environ["TRITON_INTERPRET"] = "1"  # triton reads it once, when it is imported
    sys.meta_path.insert(0, _Finder(dict(AFTER_IMPORT)))


class _Finder(importlib.abc.MetaPathFinder):
    """Call a function with each module of a table, once the module has been imported."""

    def __init__(self, after: dict[str, Callable[[Any], None]]) -> None:
        self._after = after
        self._searching = ""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in self._after or name == self._searching:
            return None
        self._searching = name  # the search below reaches the ordinary finders only
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._searching = ""
        # Not every search is followed by an import: some only ask whether the module is there.
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._after[name])
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: Any, after: Callable[[Any], None]) -> None:
        self._loader, self._after = loader, after

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader  # torch looks into its own spec
        self._loader.exec_module(module)
        self._after(module)


def install(torch: Any) -> None:
    _enter_mode_in_every_thread()
    _simulate_tensors(torch)
    _simulate_device(torch.cuda)
    recorded_graphs.install(torch.cuda)
    host_streams.install(torch.cuda)
    _use_gloo(torch.distributed)


def _enter_mode_in_every_thread() -> None:
    """A TorchFunctionMode belongs to one thread, and LightLLM runs its model in several."""
    import torch
    from torch.overrides import TorchFunctionMode

    def on_cpu(value: Any) -> Any:
        if isinstance(value, (str, torch.device)) and str(value).startswith("cuda"):
            return "cpu"
        return value

    class CudaIsCpu(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            named = {name: on_cpu(value) for name, value in (kwargs or {}).items()}
            if isinstance(named.get("device"), int):  # a bare number is the number of a GPU
                named["device"] = "cpu"
            if named.get("pin_memory"):
                named["pin_memory"] = False
            return func(*map(on_cpu, args), **named)

    CudaIsCpu().__enter__()
    bootstrap = threading.Thread._bootstrap_inner  # type: ignore[attr-defined]  # run() is what subclasses override

    def bootstrap_on_cpu(thread: threading.Thread) -> None:
        with CudaIsCpu():
            bootstrap(thread)

    threading.Thread._bootstrap_inner = bootstrap_on_cpu  # type: ignore[attr-defined]


def _simulate_tensors(torch: Any) -> None:
    """Copy where a GPU would copy: LightLLM writes into a tensor on the host while the GPU works with its copy."""
    torch.Tensor.cuda = torch.Tensor.cpu = torch.Tensor.pin_memory = lambda self, *args, **kwargs: self.clone()

    class Generator(torch._C.Generator):  # type: ignore[misc]
        def __new__(cls, device: object = "cpu") -> Any:
            return super().__new__(cls, "cpu")

    torch.Generator = Generator
    if os.environ["LIGHTLLM_ON_CPU"] == "new":  # the new one asserts is_cuda of its inputs, the old one its absence
        torch.Tensor.is_cuda = property(lambda self: True)


class _Properties:
    """Properties that LightLLM asks a GPU for when it sizes its kernels and its cache."""

    name = "CPU"
    major, minor = 9, 0
    multi_processor_count = 132
    total_memory = 16 << 30
    shared_memory_per_multiprocessor = 228 << 10


def _simulate_device(cuda: Any) -> None:
    """torch.cuda.is_available() stays false: whoever asks is told the truth."""
    cuda.get_device_name = lambda *args: _Properties.name
    cuda.get_device_capability = lambda *args: (_Properties.major, _Properties.minor)
    cuda.get_device_properties = lambda *args: _Properties
    cuda.mem_get_info = lambda *args: (_Properties.total_memory // 2, _Properties.total_memory)
    cuda.set_device = lambda *args: None
    cuda.current_device = lambda: 0
    cuda.device_count = lambda: 1
    cuda.synchronize = lambda *args: None
    cuda.empty_cache = lambda: None


def _use_gloo(dist: Any) -> None:
    init_process_group, new_group = dist.init_process_group, dist.new_group

    def init_with_gloo(backend: object = None, *args: Any, **kwargs: Any) -> Any:
        return init_process_group("gloo", *args, **kwargs)

    def new_group_with_gloo(ranks: Any = None, *args: Any, **kwargs: Any) -> Any:
        return new_group(ranks, **{**kwargs, "backend": "gloo"})

    dist.init_process_group, dist.new_group = init_with_gloo, new_group_with_gloo


def _name_device(module: Any) -> None:
    """LightLLM's tables of tuned kernels go by the GPU's name, and it takes the lack of CUDA for the lack of a name."""
    module.get_current_device_name = lambda: _Properties.name


def _borrow_memory(module: Any) -> None:
    """A tensor that does not own its memory, without CuPy."""
    import ctypes

    import torch

    def ptr_to_tensor(device_ptr: int, nbytes: int) -> Any:
        return torch.frombuffer((ctypes.c_uint8 * nbytes).from_address(device_ptr), dtype=torch.uint8)

    module.ptr_to_tensor = ptr_to_tensor


AFTER_IMPORT: dict[str, Callable[[Any], None]] = {
    "torch": install,
    "triton.runtime.interpreter": recorded_graphs.record_triton,
    "lightllm.utils.device_utils": _name_device,
    "lightllm.utils.tensor_utils": _borrow_memory,
}
