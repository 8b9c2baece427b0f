"""Make one rank slow on purpose: after its attention's projection and after its feed-forward, before both all_reduce."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

PTX = Path(__file__).with_name("spin.ptx")
LAYER = "lightllm.models.llama.layer_infer.transformer_layer_infer"
SLOTS = ("_get_o", "_ffn")
HOLD_SECONDS = 0.2  # a step of 32 layers is launched in 20 ms, on slow hosts in more than 100


class Slowdown(Protocol):
    """``wait`` is called in every slot, also while a graph is captured; ``set`` says for how long from now on.

    ``hold``: the next slot, and only that, keeps the GPU until the host has launched the rest of the step.
    """

    def wait(self) -> None: ...

    def set(self, seconds: float) -> None: ...

    def hold(self) -> None: ...


class Spin:
    """A kernel that looks into a cell of GPU memory, so that one graph can have any delay."""

    def __init__(self) -> None:
        import cupy
        import numpy as np
        import torch

        from lightllm_otel.worker.gpu.timestamp_kernels import CupyKernels

        self._torch = torch
        self._stream = CupyKernels()._stream
        self._kernel = cupy.RawModule(path=str(PTX)).get_function("spin")
        self._cell = torch.zeros(1, dtype=torch.int64, device="cuda")
        self._long = torch.full((1,), round(HOLD_SECONDS * 1e9), dtype=torch.int64, device="cuda")
        self._arguments, self._held = ((np.uint64(cell.data_ptr()),) for cell in (self._cell, self._long))
        self._hold = False

    def wait(self) -> None:
        with self._stream(self._torch.cuda.current_stream().cuda_stream):
            if self._hold:
                self._hold = False
                self._kernel((1,), (1,), self._held)
            self._kernel((1,), (1,), self._arguments)

    def hold(self) -> None:
        self._hold = True

    def set(self, seconds: float) -> None:
        self._torch.cuda.synchronize()
        self._cell.fill_(round(seconds * 1e9))
        self._torch.cuda.synchronize()


class Sleep:
    """On the CPU, to try a benchmark out."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def wait(self) -> None:
        if self._seconds:
            time.sleep(self._seconds)

    def set(self, seconds: float) -> None:
        self._seconds = seconds

    def hold(self) -> None:
        """Nothing is launched here, so nothing can be launched ahead."""


class Later:
    """Stands in until there is a device to make the real one on: layers are patched before the model is built."""

    def __init__(self, make: Callable[[], Slowdown]) -> None:
        self._make = make

    @functools.cached_property
    def real(self) -> Slowdown:
        return self._make()


def patch_layers(later: Later, slots: Sequence[str] = SLOTS) -> None:
    """Before LightLLM is imported. The plugin wraps the instances' slots around this, so the delay is the operator's."""
    import wrapt

    def patch(module: Any) -> None:
        owner = module.LlamaTransformerLayerInfer
        for name in slots:
            setattr(owner, name, slowed(getattr(owner, name), later))

    wrapt.register_post_import_hook(patch, LAYER)


def slowed(host: Callable[..., Any], later: Later) -> Callable[..., Any]:
    @functools.wraps(host)
    def method(*args: Any, **kwargs: Any) -> Any:
        result = host(*args, **kwargs)
        later.real.wait()
        return result

    return method
