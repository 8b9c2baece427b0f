"""Steps of LightLLM since v1.1.0 without its two infer threads: the backend's own ``prefill`` and ``decode``, one at a time.

A server's infer threads take turns, so that the host's work on one step lies under the GPU's work on the next. Here a step
ends before the next one begins.
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
    """Whether this LightLLM steps in infer threads, v1.1.0 or later. Imports nothing of it."""
    found = importlib.util.find_spec("lightllm")
    places = found.submodule_search_locations if found is not None else None
    return any((Path(place) / OVERLAP).exists() for place in places or ())


class BackendSteps:
    """The requests and steps of one rank. ``spare``: requests, and tokens per request, beyond what the arguments say."""

    # The prompt cache stays out: a prompt that comes a second time must be computed a second time.
    ARGUMENTS = ("--disable_dynamic_prompt_cache",)

    def __init__(self, given: argparse.Namespace, rank: int, spare: int) -> None:
        import lightllm.models  # noqa: F401 - first: the packages below import each other, and only this order works
        from lightllm.server.router.model_infer.infer_batch import g_infer_context
        from lightllm.server.router.model_infer.mode_backend import ChunkedPrefillBackend

        class Backend(ChunkedPrefillBackend):  # type: ignore[misc]
            def infer_loop(self) -> None:
                """Nobody sends requests here."""

        # Ranks of a server share requests in memory that goes by this name; these ranks have their own.
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
        """LightLLM's own requests, greedy, one for each row of ``prompts``."""
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
            # The request links the memory once more, as another process would; this view of it must not keep it open.
            shared.shm_prompt_ids.arr = shared.shm_logprobs.arr = None
        made: list[Any] = self._context.add_reqs(
            [(8 * (number + 1), number, MultimodalParams(), 0) for number in range(len(prompts))]
        )
        return made

    def prefill(self, requests: list[Any]) -> None:
        self._backend.prefill(event_pack=_nobody_to_wait_for(), prefill_reqs=requests)

    def decode(self, requests: list[Any]) -> None:
        self._backend.decode(event_pack=_nobody_to_wait_for(), decode_reqs=requests)

    def forget(self, requests: list[Any]) -> None:
        for request in requests:
            self._context.requests_mapping.pop(request.req_id, None)
            request.shm_req.shm_prompt_ids.arr = request.shm_req.shm_logprobs.arr = None
        self._context.infer_req_ids.clear()

    def close(self) -> None:
        """Remove the locks that LightLLM leaves behind. The shared memory goes with the process."""
        for path in Path("/tmp").glob(f"{self._name}*.lock"):
            path.unlink(missing_ok=True)


def _nobody_to_wait_for() -> Any:
    """The events by which the infer threads take turns, all of them set."""
    from lightllm.server.router.model_infer.mode_backend.overlap_events import OverlapEventPack

    pack = OverlapEventPack(**{field.name: threading.Event() for field in dataclasses.fields(OverlapEventPack)})
    for event in vars(pack).values():
        event.set()
    return pack


def _configure_allreduce(given: argparse.Namespace) -> None:
    """Try the ways to all_reduce that not every machine has, as LightLLM does when it starts (since May 2026)."""
    if importlib.util.find_spec("lightllm.utils.dist_check_utils") is not None:
        from lightllm.utils.dist_check_utils import auto_configure_allreduce_flags_from_args
        from lightllm.utils.envs_utils import set_env_start_args

        auto_configure_allreduce_flags_from_args(given)
        set_env_start_args(given)


def _arguments_of_model(given: argparse.Namespace, rank: int, spare: int) -> dict[str, Any]:
    """What the router passes to ``init_model``, of all versions together."""
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
