"""Support for LightLLM's ``CudaGraph``: whether its graphs can be captured a second time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightllm_otel.contracts.fits import Fits


def unsupported(owner: Any, fits: Fits, environ: Mapping[str, str]) -> str:
    """Return why graphs of this ``CudaGraph`` are not captured a second time, or an empty string if they can be."""
    args = getattr(owner, "args", None)
    if not fits.fits("graph_capture") or not fits.fits("graph_replay"):
        return "CudaGraph captures or replays in an unknown way"
    if getattr(owner, "enable_decode_microbatch_overlap", False):
        return "two microbatches overlap in one graph"
    if getattr(args, "enable_ep_moe", False) or environ.get("MOE_MODE", "TP") == "EP":
        return "expert parallelism uses communication buffers that alternate from call to call"
    if getattr(args, "enable_torch_memory_saver", False):
        return "torch_memory_saver may take a graph's memory away (--enable_rl)"
    if not hasattr(owner, "mempool") or not isinstance(getattr(owner, "graph", None), dict):
        return "CudaGraph keeps its graphs in an unknown way"
    return ""


def is_replaceable(owner: Any, batch: int) -> bool:
    """Tell whether the host keeps its graph for ``batch`` in the known form: ``(graph, …, output)``."""
    entry = owner.graph.get(batch)
    return isinstance(entry, tuple) and len(entry) > 1 and hasattr(entry[0], "replay")
