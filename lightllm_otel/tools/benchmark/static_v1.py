"""One rank of a LightLLM model in this process, without a server, executed step by step.

    model = StaticModel(folder, checkout, max_total_tokens=4096, graph_max_batch=8, graphs=True)
    model.prefill(8, 256, seed=0)
    model.decode()
    model.tokens  # new tokens of every request, to compare with another run
    model.release()

On the host, each step does what the model process of a server does, with the functions of LightLLM. To measure with the
plugin, activate it before the first StaticModel: LightLLM must not be imported yet.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, cast

import numpy as np

from lightllm_otel.tools.benchmark.graph_sizes import graph_sizes_for
from lightllm_otel.tools.benchmark.static_backend import BackendSteps, has_infer_threads

MAX_LENGTH = 4096
SPARE = 8  # requests, and tokens per request, that a server adds to its limits
FIRST_ORDINARY_TOKEN = 3  # smaller tokens are unknown, begin and end


class StaticModel:
    """Model of LightLLM since July 2025. A process can have only one.

    ``graph_batches``: batch sizes that must have a graph of their own; None for those that a server captures. ``arguments``:
    further words of LightLLM's command line. ``switches``: options without a value, which are ignored if LightLLM lacks them.
    """

    def __init__(
        self,
        model_dir: Path,
        source: Path | None,
        max_total_tokens: int,
        graph_max_batch: int,
        graphs: bool,
        tp: int = 1,
        rank: int = 0,
        nccl_port: int = 28765,
        *,
        max_length: int = MAX_LENGTH,
        graph_batches: Sequence[int] | None = None,
        arguments: Sequence[str] = (),
        switches: Sequence[str] = (),
    ) -> None:
        # With recent torch, the tensor cache never finds a free buffer, so a forward would keep all activations.
        os.environ.setdefault("DISABLE_GPU_TENSOR_CACHE", "1")
        if source is not None:
            sys.path.insert(0, str(source))
        words = {
            "model_dir": model_dir, "tp": tp, "nccl_port": nccl_port, "max_total_token_num": max_total_tokens,
            "max_req_total_len": min(max_length, max_total_tokens - SPARE), "graph_max_batch_size": graph_max_batch,
        }  # fmt: skip
        if graph_batches is not None:
            sizes = graph_sizes_for(sorted({*graph_batches, graph_max_batch}))
            words |= {"graph_split_batch_size": sizes.split, "graph_grow_step_size": sizes.step}
        command = [word for name, value in words.items() for word in (f"--{name}", str(value))]
        steps = BackendSteps if has_infer_threads() else FunctionSteps
        command += [*steps.ARGUMENTS, *([] if graphs else ["--disable_cudagraph"])]
        self.arguments = _start_arguments([*command, *arguments], switches)
        self._requests: list[Any] = []
        _name_the_device()
        self._steps: BackendSteps | FunctionSteps = steps(self.arguments, rank, SPARE)
        self.model = self._steps.model

    def prefill(self, batch: int, input_len: int, seed: int = 0) -> None:
        """Compute ``batch`` prompts of ``input_len`` tokens in one forward, and their first new token."""
        if self._requests:
            raise RuntimeError("there is a batch already: call release() first")
        prompts = np.random.default_rng(seed).integers(
            FIRST_ORDINARY_TOKEN, self.model.vocab_size, (batch, input_len), dtype=np.int64
        )
        self._requests = self._steps.requests(prompts)
        self._steps.prefill(self._requests)

    def decode(self) -> None:
        """Compute one more token for every request."""
        self._steps.decode(self._requests)

    @property
    def tokens(self) -> list[list[int]]:
        """New tokens of every request."""
        return [
            request.shm_req.shm_prompt_ids.arr[request.shm_req.input_len : request.get_cur_total_len()].tolist()
            for request in self._requests
        ]

    def release(self) -> None:
        """Release the batch. The next batch gets the same places in the KV cache."""
        self._steps.forget(self._requests)
        self._requests = []
        self.model.req_manager.free_all()
        self.model.mem_manager.free_all()

    def close(self) -> None:
        """Remove the router's view of the KV cache, which LightLLM never removes, and leave the process group.

        If CUDA graphs contain collectives, the group ends only with the process: NCCL would wait for those graphs forever.
        """
        import torch.distributed as dist

        self.release()
        self._steps.close()
        if self.arguments.disable_cudagraph or self.arguments.tp == 1:
            dist.destroy_process_group()

    def __enter__(self) -> StaticModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            with contextlib.suppress(Exception):  # the first error is the relevant one
                self.close()


class FunctionSteps:
    """Requests and steps of one rank of LightLLM of July 2025 (``fc72ffab``), with the functions that its loop calls."""

    ARGUMENTS = ()

    def __init__(self, given: argparse.Namespace, rank: int, spare: int) -> None:
        # First the model: lightllm.distributed and lightllm.common import each other, so only this order works.
        from lightllm.models import get_model  # isort: skip
        from lightllm.distributed import dist_group_manager
        from lightllm.server.router.model_infer import infer_batch
        from lightllm.server.router.model_infer.mode_backend import generic_post_process, generic_pre_process
        from lightllm.utils.dist_utils import init_distributed_env
        from lightllm.utils.infer_utils import set_random_seed

        self._given = given
        init_distributed_env({
            "args": given, "rank_id": rank, "world_size": given.tp, "dp_size": given.dp,
            "nccl_host": given.nccl_host, "nccl_port": given.nccl_port,
        })  # fmt: skip
        dist_group_manager.create_groups(group_size=1)
        config = json.loads((Path(given.model_dir) / "config.json").read_text())
        model, _ = get_model(config, {
            "weight_dir": given.model_dir, "load_way": given.load_way, "mode": given.mode, "run_mode": given.run_mode,
            "data_type": given.data_type, "quant_type": given.quant_type, "quant_cfg": given.quant_cfg,
            "max_total_token_num": given.max_total_token_num, "batch_max_tokens": given.batch_max_tokens,
            "max_req_num": given.running_max_req_size + spare, "max_seq_length": given.max_req_total_len + spare,
            "mem_fraction": given.mem_fraction, "disable_cudagraph": given.disable_cudagraph,
            "graph_max_batch_size": given.graph_max_batch_size,
            "graph_max_len_in_batch": given.graph_max_len_in_batch,
            "use_dynamic_prompt_cache": True, "disable_chunked_prefill": given.disable_chunked_prefill,
            "is_token_healing": False, "return_all_prompt_logics": False,
        })  # fmt: skip
        set_random_seed(2147483647)
        # No prompt cache: a repeated prompt must be computed again.
        infer_batch.g_infer_context.register(
            req_manager=model.req_manager, radix_cache=None, shm_req_manager=None, vocab_size=model.vocab_size
        )
        self._request_class = infer_batch.InferReq
        self._before, self._after = generic_pre_process, generic_post_process
        self.model = model

    def requests(self, prompts: np.ndarray) -> list[Any]:
        """Return greedy requests of LightLLM, one for each row of ``prompts`` (int64, shape (requests, tokens))."""
        return [self._request(number, prompt) for number, prompt in enumerate(prompts)]

    def prefill(self, requests: list[Any]) -> None:
        """Compute the prompts of all requests in one step."""
        self._step(*self._before.prepare_prefill_inputs(requests, is_chuncked_mode=False))

    def decode(self, requests: list[Any]) -> None:
        """Compute one more token for every request."""
        self._step(*self._before.prepare_decode_inputs(requests))

    def forget(self, requests: list[Any]) -> None:
        """Do nothing: LightLLM keeps no reference to the requests."""

    def close(self) -> None:
        """Remove the shared memory."""
        self.model.mem_manager.shared_can_use_token_num.shm.unlink()

    def _request(self, number: int, prompt: np.ndarray) -> Any:
        """Return a greedy request of LightLLM, with plain arrays in place of shared memory."""
        from lightllm.server.core.objs import SamplingParams

        request = self._request_class(
            req_id=8 * (number + 1),
            req_idx=self.model.req_manager.alloc(),
            shm_index=number,
            vocab_size=self.model.vocab_size,
        )
        parameters = SamplingParams()
        parameters.init(tokenizer=None, do_sample=False, ignore_eos=True)
        room = self._given.max_req_total_len + SPARE
        tokens = np.zeros(room, np.int64)
        tokens[: len(prompt)] = prompt
        request.shm_req = SimpleNamespace(
            input_len=len(prompt), shm_prompt_ids=SimpleNamespace(arr=tokens),
            shm_logprobs=SimpleNamespace(arr=np.zeros(room, np.float32)),
            chunked_prefill_size=room, request_id=request.req_id, sample_params=parameters,
        )  # fmt: skip
        request.sampling_param = SimpleNamespace(shm_param=parameters)
        request.cur_kv_len = request.cur_output_len = 0
        request.initialized = True
        self.model.req_manager.req_sampling_params_manager.init_req_sampling_params(request)
        return request

    def _step(self, model_input: Any, requests: list[Any]) -> None:
        import torch

        logits = self.model.forward(model_input).logits
        # Call it through the module, which the plugin has hooked: a step ends when sample returns.
        tokens, probabilities = self._after.sample(logits, requests, self._given.eos_id)
        tokens = tokens.detach().cpu().numpy()
        logarithms = torch.log(probabilities).detach().cpu().numpy()
        for request, token, logarithm in zip(requests, tokens, logarithms):
            request.cur_kv_len = request.get_cur_total_len()
            request.set_next_gen_token_id(token, logarithm)
            request.cur_output_len += 1
        self.model.req_manager.req_sampling_params_manager.update_reqs_token_counter(
            req_objs=requests, next_token_ids=tokens
        )


def _without_gpu() -> list[tuple[str, str]]:
    """Return options and values that keep LightLLM from testing kernels that need a GPU; empty if there is a GPU."""
    import torch

    backends = ("--llm_prefill_att_backend", "--llm_decode_att_backend")
    return [] if torch.cuda.is_available() else [(option, "triton") for option in backends]


def _name_the_device() -> None:
    """Give the CPU a device name, because LightLLM selects tuned MoE kernels by the GPU's name."""
    import torch
    from lightllm.utils import device_utils

    if not torch.cuda.is_available():
        device_utils.get_current_device_name = lambda: "CPU"


def _start_arguments(words: list[str], switches: Sequence[str]) -> argparse.Namespace:
    """Return LightLLM's arguments as its api_start passes them to the model process, and set its environment variables."""
    from lightllm.server import api_cli
    from lightllm.server.core.objs import start_args_type
    from lightllm.utils.config_utils import get_dtype, get_eos_token_ids
    from lightllm.utils.envs_utils import set_env_start_args, set_unique_server_name

    parser = api_cli.make_argument_parser()
    known = {option for action in parser._actions for option in action.option_strings}
    chosen = [word for option, value in _without_gpu() if option in known for word in (option, value)]
    given: Any = parser.parse_args([*chosen, *words, *(switch for switch in switches if switch in known)])
    if hasattr(api_cli, "add_cli_args"):  # versions with this function pass arguments as a dataclass
        given = start_args_type.StartArgs(**vars(given))
        given.enable_multimodal, given.disable_vision, given.disable_audio = False, True, True
        given.linear_att_cache_size = given.linear_att_cache_size or 2 * given.running_max_req_size
    set_unique_server_name(given)
    given.graph_max_len_in_batch = given.graph_max_len_in_batch or given.max_req_total_len
    given.batch_max_tokens = given.batch_max_tokens or given.max_req_total_len
    given.chunked_prefill_size = given.chunked_prefill_size or given.batch_max_tokens
    given.eos_id = given.eos_id or get_eos_token_ids(given.model_dir)
    given.data_type = given.data_type or get_dtype(given.model_dir)
    set_env_start_args(given)
    return cast("argparse.Namespace", given)
