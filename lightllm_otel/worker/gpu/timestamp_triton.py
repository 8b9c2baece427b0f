"""Timestamp kernels in Triton, which LightLLM always has. They are used where CuPy cannot load the PTX kernels."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from triton.language.extra.cuda import globaltimer

from lightllm_otel.worker.gpu.timestamp_kernels import KEPT


@triton.jit(do_not_specialize=["at"])
def lightllm_otel_stamp(cells, at):  # type: ignore[no-untyped-def]
    tl.store(cells + at, globaltimer())


@triton.jit(do_not_specialize=["count", "stride"])  # type: ignore[untyped-decorator]
def lightllm_otel_publish(cells, slots, counter, count, stride, kept: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    replay = tl.load(counter)
    slot = slots + (replay % kept) * stride
    for start in range(0, count, block):
        at = start + tl.arange(0, block)
        tl.store(slot + 1 + at, tl.load(cells + at, mask=at < count, other=0), mask=at < count)
    tl.debug_barrier()  # every thread has read the counter
    tl.store(slot, replay + 1)
    tl.store(counter, replay + 1)


class TritonKernels:
    """Kernels that are launched through Triton. The first, eager launch compiles them."""

    detail = "triton"

    def timestamp(self, cells: Any, at: int) -> None:
        lightllm_otel_stamp[(1,)](cells, at, num_warps=1)

    def publish(self, cells: Any, slots: Any, counter: Any, count: int, stride: int) -> None:
        lightllm_otel_publish[(1,)](cells, slots, counter, count, stride, kept=KEPT, block=256, num_warps=4)
