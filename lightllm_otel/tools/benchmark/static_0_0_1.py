"""One rank of a model of LightLLM 0.0.1 in this process, without a server; the interface is that of :mod:`.static_v1`.

The backend of LightLLM executes each step, called as its router would call it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from lightllm_otel.tools.benchmark.static_v1 import FIRST_ORDINARY_TOKEN, SPARE

_BATCH = "batch"


class StaticModel001:
    """Model of LightLLM 0.0.1. A process can have only one."""

    def __init__(
        self, model_dir: Path, max_total_tokens: int, tp: int, rank: int, nccl_port: int, max_length: int,
        data_type: str = "float16", most_requests: int = 1000,
    ) -> None:  # fmt: skip
        from lightllm.server.router.model_infer.mode_backend import ContinuesBatchBackend

        self._backend = ContinuesBatchBackend()
        self._backend.init_model({
            "rank_id": rank, "world_size": tp, "weight_dir": str(model_dir), "load_way": "HF", "mode": [],
            "max_total_token_num": max_total_tokens, "nccl_port": nccl_port, "max_req_num": most_requests + SPARE,
            "max_seq_length": max_length + SPARE, "data_type": data_type, "eos_id": [2],
            # No prompt cache: a repeated prompt must be computed again.
            "use_dynamic_prompt_cache": False,
        })  # fmt: skip
        self._tokens: dict[int, list[int]] = {}

    def prefill(self, batch: int, input_len: int, seed: int = 0) -> None:
        """Compute ``batch`` prompts of ``input_len`` tokens in one forward, and their first new token."""
        from lightllm.server.io_struct import ReqRunStatus

        if self._tokens:
            raise RuntimeError("there is a batch already: call release() first")
        prompts = np.random.default_rng(seed).integers(
            FIRST_ORDINARY_TOKEN, self._backend.model.vocab_size, (batch, input_len), dtype=np.int64
        )
        self._tokens = {8 * (number + 1): [] for number in range(batch)}
        self._backend.add_batch(_BATCH, [
            {
                "request_id": name, "group_req_id": name, "input_id": prompt.tolist(), "multimodal_params": [],
                "req_status": ReqRunStatus.WAIT_IN_QUEUE,
                "sampling_param": {"do_sample": False, "top_k": 1, "ignore_eos": True, "max_new_tokens": 1 << 30},
            }
            for name, prompt in zip(self._tokens, prompts)
        ])  # fmt: skip
        self._keep(self._backend.prefill_batch(_BATCH))

    def decode(self) -> None:
        """Compute one more token for every request."""
        self._keep(self._backend.decode_batch(_BATCH))

    def _keep(self, answered: dict[int, Any]) -> None:
        for name, (_, _, _, new, *_) in answered.items():
            self._tokens[name] += [token for token, _ in new]

    @property
    def tokens(self) -> list[list[int]]:
        """New tokens of every request."""
        return list(self._tokens.values())

    def release(self) -> None:
        """Release the batch."""
        if self._tokens:
            self._backend.remove_batch(_BATCH)
            self._tokens = {}

    def __enter__(self) -> StaticModel001:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import torch.distributed as dist

        with contextlib.suppress(Exception) if kind is not None else contextlib.nullcontext():
            self.release()
            dist.destroy_process_group()
