"""Make the recordings that come with the package: real servers, real GPU, small.

    python benchmarks/lib/record.py --source CHECKOUT --out lightllm_otel/recordings

``h200-llama-7b-tp1``: the current LightLLM without CUDA graphs, so that every operator of both phases is in it.
``h200-llama-tp2``: two ranks with real NCCL all_reduce on one GPU, joined through loopback; the link is slow, and
time slices of the two processes hide anything below some milliseconds.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import shutil
import signal
import sys
import time
from pathlib import Path

import _paths
import checkpoint
import fixed_batch
from server import Server, free_port

FLAGS = ["--max_total_token_num", "40000", "--mem_fraction", "0.3"]


def environment(work: Path, every: int) -> dict[str, str]:
    return {
        "LIGHTLLM_OTEL": "1",
        "LIGHTLLM_OTEL_DIR": str(work / "otel"),
        "LIGHTLLM_OTEL_RECORD": str(work / "record"),
        "LIGHTLLM_OTEL_SAMPLE_EVERY": str(every),
    }


def load(server: Server, rounds: int, requests: int, input_tokens: int, output_tokens: int) -> None:
    """``requests`` at a time, of mixed lengths, with a pause between rounds."""
    for number in range(rounds):
        texts = fixed_batch.prompts(requests, input_tokens, number * requests)
        with concurrent.futures.ThreadPoolExecutor(requests) as pool:
            jobs = []
            for index, text in enumerate(texts):
                jobs.append(pool.submit(server.generate, text[: input_tokens - 37 * index], output_tokens + index, 300))
                time.sleep(0.02 * (index % 5))
            for job in jobs:
                job.result()
        time.sleep(0.5)


def keep(work: Path, name: str, out: Path) -> None:
    """Move the one recording of a run to where the package looks for it."""
    time.sleep(2)
    (recording,) = (work / "record").iterdir()
    shutil.rmtree(out / name, ignore_errors=True)
    shutil.copytree(recording, out / name)
    print(name, {path.name: path.stat().st_size for path in (out / name).iterdir()}, flush=True)


def tensor_parallel_1(model: Path, work: Path, source: Path, out: Path) -> None:
    flags = [*FLAGS, "--disable_cudagraph"]
    with Server(model, "new", cpu=False, source=source, env=environment(work, 16), arguments=flags,
                log=work / "server.log", start_timeout=300) as server:  # fmt: skip
        load(server, rounds=4, requests=20, input_tokens=1024, output_tokens=64)
        keep(work, "h200-llama-7b-tp1", out)


def tensor_parallel_2(model: Path, work: Path, source: Path, out: Path) -> None:
    """Two "nodes" of one group on one GPU; NCCL takes two ranks on a GPU only from different hosts."""
    port = free_port()
    shared = {"NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1", **environment(work, 4)}
    servers = []
    for rank in range(2):
        flags = [*FLAGS, "--disable_cudagraph", "--nnodes", "2", "--node_rank", str(rank), "--nccl_host", "127.0.0.1",
                 "--nccl_port", str(port)]  # fmt: skip
        servers.append(Server(model, "new", cpu=False, tp=2, source=source, env={**shared, "NCCL_HOSTID": f"node{rank}"},
                              arguments=flags, script=_paths.DEMO / "node.py",
                              log=work / f"node{rank}.log", start_timeout=300))  # fmt: skip
    with contextlib.ExitStack() as stack:
        for server in servers:
            server.start()
            stack.callback(server.stop)
        servers[0].wait_healthy()
        load(servers[0], rounds=2, requests=8, input_tokens=512, output_tokens=16)
        keep(work, "h200-llama-tp2", out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="a checkout of the current LightLLM")
    parser.add_argument("--work", type=Path, default=Path("/tmp/record"))
    parser.add_argument("--out", type=Path, default=_paths.ROOT / "lightllm_otel" / "recordings")
    parser.add_argument("--model", type=Path, help="a 7B checkpoint that is there already")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwind: a server left behind keeps its GPU memory
    large = arguments.model or checkpoint.write(arguments.work / "llama-7b", checkpoint.SHAPES["llama-7b"], "float16")
    small = checkpoint.write(arguments.work / "llama-8-layers", checkpoint.SHAPES["llama-8-layers"], "float16")
    for model, run in ((large, tensor_parallel_1), (small, tensor_parallel_2)):
        work = arguments.work / run.__name__
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            run(model, work, arguments.source, arguments.out)
        except Exception as error:  # noqa: BLE001 - the other recording is still worth having
            print(f"{run.__name__}: {error!r}", flush=True)
            for log in work.glob("*.log"):
                print(log.name, log.read_text(errors="replace")[-3000:], flush=True)


if __name__ == "__main__":
    main()
