"""Process of one rank of the static benchmark: ``python -m lightllm_otel.tools.benchmark.rank``, started by :mod:`.static`.

It prints ``ready`` once the model is loaded and warm, and waits for a line. Then it runs the batch, prints the seconds as JSON,
and waits for another line before it ends, so that its ring can be read meanwhile.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

# Extra steps after the batch: the plugin reads a step when the next ones run, so the last steps would be missing.
TRAILING_STEPS = 3
# Switch off the all_reduces that need one GPU per rank. A version of LightLLM may lack some of these options.
WITHIN_A_HOST = ("--disable_custom_allreduce", "--disable_flashinfer_allreduce", "--disable_symm_mem_allreduce")


def main() -> None:
    """Run one rank."""
    given = _arguments()
    # LightLLM prints to stdout, too, but stdout is our channel to the parent.
    channel, sys.stdout = sys.stdout, sys.stderr
    with _model(given) as model:
        for number in range(given.warmup):
            _batch(model, given, number, min(given.output_len, 8))
        _say(channel, {"ready": True})
        sys.stdin.readline()
        seconds = _batch(model, given, given.seed, given.output_len, TRAILING_STEPS)
        _say(channel, {"prefill_seconds": seconds[0], "decode_seconds": seconds[1]})
        sys.stdin.readline()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model-dir", type=Path, required=True)
    for number in ("tp", "rank", "nccl-port", "batch-size", "input-len", "output-len", "warmup", "seed"):
        parser.add_argument(f"--{number}", type=int, required=True)
    parser.add_argument("--data-type", default=None)
    parser.add_argument("--graphs", action="store_true")
    parser.add_argument("--share-gpu", action="store_true")
    return parser.parse_args()


def is_after_0_0_1() -> bool:
    """Return whether LightLLM is newer than 0.0.1, which has no module ``lightllm.distributed``."""
    return importlib.util.find_spec("lightllm.distributed") is not None


def _model(given: argparse.Namespace) -> Any:
    length = given.input_len + given.output_len + TRAILING_STEPS
    total = given.batch_size * (length + 1)
    if is_after_0_0_1():
        from lightllm_otel.tools.benchmark import static_v1

        more = ["--data_type", given.data_type] if given.data_type else []
        if given.share_gpu:  # every rank is a node of its own on this host
            more += ["--nnodes", str(given.tp), "--node_rank", str(given.rank)]
        return static_v1.StaticModel(
            given.model_dir, None, max(total, length + static_v1.SPARE) + static_v1.SPARE, given.batch_size, given.graphs,
            given.tp, given.rank, given.nccl_port, max_length=length, graph_batches=[given.batch_size],
            arguments=[*more, "--batch_max_tokens", str(given.batch_size * given.input_len),
                       "--running_max_req_size", str(given.batch_size)],
            switches=WITHIN_A_HOST if given.share_gpu else (),
        )  # fmt: skip
    if given.share_gpu:
        sys.exit("LightLLM 0.0.1 cannot share a GPU among ranks, because it supports only one host")
    from lightllm_otel.tools.benchmark import static_0_0_1

    return static_0_0_1.StaticModel001(
        given.model_dir,
        total,
        given.tp,
        given.rank,
        given.nccl_port,
        length,
        given.data_type or "float16",
        given.batch_size,
    )


def _batch(model: Any, given: argparse.Namespace, seed: int, output_len: int, trailing: int = 0) -> tuple[float, float]:
    """Run one batch. Return the seconds of the prefill and of all decode steps, on the host's clock.

    Each step ends when its tokens have been read, so the host's clock includes the GPU's work.
    """
    began = time.perf_counter()
    model.prefill(given.batch_size, given.input_len, seed)
    prefilled = time.perf_counter()
    for _ in range(output_len - 1):
        model.decode()
    ended = time.perf_counter()
    for _ in range(trailing):
        model.decode()
    model.release()
    return prefilled - began, ended - prefilled


def _say(channel: Any, what: dict[str, Any]) -> None:
    channel.write(json.dumps(what) + "\n")
    channel.flush()


if __name__ == "__main__":
    main()
