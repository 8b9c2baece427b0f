"""Identity of this process: rank, group, model, GPU and versions, read from LightLLM's model and environment."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightllm_otel.contracts.start_arguments import UNNAMED, meeting_place


@dataclasses.dataclass(frozen=True)
class Identity:
    """One rank of a tensor-parallel group. ``rank`` counts within the group, which has ``tp`` ranks.

    ``dp_rank``, ``dp``: number of the group, and count of groups. ``node_rank``, ``nodes``: number of this server, and count of
    servers. ``host`` and ``port`` name the group on this machine.
    """

    rank: int
    tp: int
    dp_rank: int
    dp: int
    node_rank: int
    nodes: int
    host: str
    port: int


def identify(model: Any, environ: Mapping[str, str]) -> Identity:
    """Return the identity. Since July 2025 it is in the environment of each model process; 0.0.1 has it on the model."""
    if "LIGHTLLM_CURRENT_RANK_IN_DP" in environ:
        start = json.loads(environ.get("LIGHTLLM_START_ARGS", "{}"))
        host, port = meeting_place(start)
        return Identity(
            rank=int(environ["LIGHTLLM_CURRENT_RANK_IN_DP"]),
            tp=int(environ["LIGHTLLM_DP_WORLD_SIZE"]),
            dp_rank=int(environ.get("LIGHTLLM_GLOBAL_DP_RANK", 0)),
            dp=int(environ.get("LIGHTLLM_DP_SIZE", 1)),
            node_rank=int(start.get("node_rank") or 0),
            nodes=int(start.get("nnodes") or 1),
            host=host,
            port=port,
        )
    return Identity(
        rank=int(getattr(model, "tp_rank_", 0)),
        tp=int(getattr(model, "world_size_", 1)),
        dp_rank=0,
        dp=1,
        node_rank=0,
        nodes=1,
        host="127.0.0.1",
        port=int(environ.get("_NCCL_PORT_") or os.getpid()),  # a model without a server has no group
    )


# Keys of a model's config that the roofline reads. Nothing else of the config leaves the process.
SHAPE_KEYS = (
    "hidden_size", "n_embd", "n_embed", "num_attention_heads", "n_head", "num_hidden_layers", "n_layer",
    "num_key_value_heads", "head_dim", "intermediate_size", "n_inner", "vocab_size", "hidden_act", "hidden_activation",
    "n_routed_experts", "num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size",
    "n_shared_experts", "first_k_dense_replace", "kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim",
    "v_head_dim",
)  # fmt: skip


def _is_plain(value: Any) -> bool:
    return isinstance(value, (int, float, str))


def describe_model(model: Any, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return facts about the model, from the model itself and from the server's arguments. Unknown facts are left out."""
    config = getattr(model, "config", None) or {}
    directory = getattr(model, "weight_dir_", "")
    given = json.loads(environ.get("LIGHTLLM_START_ARGS") or "{}").get("model_name")
    return {
        "model": str(given) if given not in UNNAMED else Path(str(directory)).name or type(model).__name__,
        "model_type": config.get("model_type", ""),
        "dtype": str(getattr(model, "data_type", "")).replace("torch.", ""),
        "layers": len(getattr(model, "layers_infer", ())),
        "config": {name: value for name, value in config.items() if name in SHAPE_KEYS and _is_plain(value)},
    }


def describe_host() -> dict[str, Any]:
    """Return the versions of loaded libraries, and facts about this thread's GPU. Imports nothing."""
    torch = sys.modules.get("torch")
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "lightllm": lightllm_version(),
        "cupy": getattr(sys.modules.get("cupy"), "__version__", ""),
    }
    if torch is None:
        return facts
    facts["torch"] = torch.__version__
    facts["cuda"] = torch.version.cuda or ""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        facts["gpu_name"] = properties.name
        uuid = getattr(properties, "uuid", None)
        facts["gpu_uuid"] = f"GPU-{uuid}" if uuid is not None else ""
        bus = (getattr(properties, f"pci_{part}_id", None) for part in ("domain", "bus", "device"))
        domain, number, device = bus
        if None not in (domain, number, device):
            facts["pci_bus_id"] = f"{domain:08X}:{number:02X}:{device:02X}.0"
    return facts


def lightllm_version() -> str:
    """Return the installed version of LightLLM, or ``source`` if the imported package is a checkout on the path."""
    used = next(iter(getattr(sys.modules.get("lightllm"), "__path__", ())), None)
    try:
        installed = importlib.metadata.distribution("lightllm")
    except importlib.metadata.PackageNotFoundError:
        return "source"
    if used is not None and Path(used).resolve() != Path(str(installed.locate_file("lightllm"))).resolve():
        return "source"
    return installed.version
