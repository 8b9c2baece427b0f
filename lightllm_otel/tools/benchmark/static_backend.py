"""Steps of LightLLM since v1.1.0 without its two infer threads: ``prefill`` and ``decode`` of the backend, one at a time.

In a server, two infer threads alternate, so that the host's work on one step overlaps with the GPU's work on the other. Here
each step ends before the next one begins.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

OVERLAP = Path("server", "router", "model_infer", "mode_backend", "overlap_events.py")


def has_infer_threads() -> bool:
    """Return whether this LightLLM (v1.1.0 or later) has infer threads, without importing it."""
    found = importlib.util.find_spec("lightllm")
    places = found.submodule_search_locations if found is not None else None
    return any((Path(place) / OVERLAP).exists() for place in places or ())


class BackendSteps:
    """Requests and steps of one rank. ``spare``: requests, and tokens per request, in addition to the arguments."""

    # No prompt cache: a repeated prompt must be computed again.
    ARGUMENTS = ("--disable_dynamic_prompt_cache",)

    def __init__(self, given: argparse.Namespace, rank: int, spare: int) -> None:
        import lightllm.models  # noqa: F401 - first: the packages below import each other, and only this order works
        from lightllm.server.router.model_infer.infer_batch import g_infer_context
        from lightllm.server.router.model_infer.mode_backend import ChunkedPrefillBackend

        class Backend(ChunkedPrefillBackend):  # type: ignore[misc]
            def infer_loop(self) -> None:
                """Do nothing: there are no requests from a server."""

        # The ranks of a server share requests in memory with this name. Here each rank has its own.
        self._name = f"{os.environ['LIGHTLLM_UNIQUE_SERVICE_NAME_ID']}-rank{rank}"
        os.environ["LIGHTLLM_UNIQUE_SERVICE_NAME_ID"] = self._name
        _configure_allreduce(given)
        self._given, self._spare, self._context = given, spare, g_infer_context
        self._backend = Backend()
        self._backend.init_model(_arguments_of_model(given, rank, spare))
        self.model = self._backend.model
        self._shared: dict[int, Any] = {}
        self._context.shm_req_manager = SimpleNamespace(get_req_obj_by_index=self._shared.__getitem__)

    def requests(self, prompts: np.ndarray) -> list[Any]:
        """Return greedy requests of LightLLM, one for each row of ``prompts`` (int64, shape (requests, tokens))."""
        from lightllm.server.core.objs import SamplingParams
        from lightllm.server.core.objs.req import ChunkedPrefillReq
        from lightllm.server.multimodal_params import MultimodalParams

        for number, prompt in enumerate(prompts):
            parameters = SamplingParams()
            room = self._given.max_req_total_len + self._spare
            parameters.init(tokenizer=None, do_sample=False, ignore_eos=True, max_new_tokens=room - len(prompt))
            shared = self._shared[number] = ChunkedPrefillReq()
            shared.index_in_shm_mem = number
            shared.init(8 * (number + 1), prompt.tolist(), parameters, None, chunked_prefill_size=room)
            # The request maps the memory again, as another process would. This view must not keep it open.
            shared.shm_prompt_ids.arr = shared.shm_logprobs.arr = None
        made: list[Any] = self._context.add_reqs(
            [(8 * (number + 1), number, MultimodalParams(), 0) for number in range(len(prompts))]
        )
        return made

    def prefill(self, requests: list[Any]) -> None:
        """Compute the prompts of all requests in one step."""
        self._backend.prefill(event_pack=_events_that_are_set(), prefill_reqs=requests)

    def decode(self, requests: list[Any]) -> None:
        """Compute one more token for every request."""
        self._backend.decode(event_pack=_events_that_are_set(), decode_reqs=requests)

    def forget(self, requests: list[Any]) -> None:
        """Remove the requests from LightLLM's context."""
        for request in requests:
            self._context.requests_mapping.pop(request.req_id, None)
            request.shm_req.shm_prompt_ids.arr = request.shm_req.shm_logprobs.arr = None
        self._context.infer_req_ids.clear()

    def close(self) -> None:
        """Remove the lock files that LightLLM leaves behind. The shared memory ends with the process."""
        for path in Path("/tmp").glob(f"{self._name}*.lock"):
            path.unlink(missing_ok=True)


def _events_that_are_set() -> Any:
    """Return the events with which infer threads alternate, all set, so that a step waits for no other thread."""
    from lightllm.server.router.model_infer.mode_backend.overlap_events import OverlapEventPack

    pack = OverlapEventPack(**{field.name: threading.Event() for field in dataclasses.fields(OverlapEventPack)})
    for event in vars(pack).values():
        event.set()
    return pack


def _configure_allreduce(given: argparse.Namespace) -> None:
    """Check which all_reduce implementations work on this machine, as LightLLM does at its start (since May 2026)."""
    if importlib.util.find_spec("lightllm.utils.dist_check_utils") is not None:
        from lightllm.utils.dist_check_utils import auto_configure_allreduce_flags_from_args
        from lightllm.utils.envs_utils import set_env_start_args

        auto_configure_allreduce_flags_from_args(given)
        set_env_start_args(given)


def _arguments_of_model(given: argparse.Namespace, rank: int, spare: int) -> dict[str, Any]:
    """Return the arguments of ``init_model`` that the router passes, for all versions together."""
    names = (
        "load_way", "max_total_token_num", "nccl_host", "nccl_port", "disable_chunked_prefill", "chunked_prefill_size",
        "use_reward_model", "disable_dynamic_prompt_cache", "data_type", "eos_id", "diverse_mode", "graph_max_batch_size",
        "graph_max_len_in_batch", "disable_cudagraph", "mem_fraction", "batch_max_tokens", "quant_type", "quant_cfg",
        "expert_dtype", "mode",
    )  # fmt: skip
    return {
        "args": given, "rank_id": rank, "world_size": given.tp, "dp_size": given.dp, "weight_dir": given.model_dir,
        "max_req_num": given.running_max_req_size + spare, "max_seq_length": given.max_req_total_len + spare,
        "is_first_token_constraint_mode": False, "is_token_healing": False, "return_all_prompt_logprobs": False,
        "pd_rpyc_ports": None, **{name: getattr(given, name) for name in names if hasattr(given, name)},
    }  # fmt: skip
