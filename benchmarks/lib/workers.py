"""Processes with a model of their own: a fresh CUDA state, nothing of the plugin unless the process wants it."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _paths import DEMO

MAX_LENGTH = 4096  # what LightLLM's graphs are captured for
CPU_MAX_LENGTH = 400
BEGAN = time.perf_counter()
PATIENCE_SECONDS = 30.0


def say(what: str) -> None:
    print(f"[{time.perf_counter() - BEGAN:6.1f} s] {what}", flush=True)


def environment(cpu: bool, first: Sequence[Path] = (), version: str = "new") -> dict[str, str]:
    """Of a child. With CPU, torch takes it for a GPU. ``first``: folders before all others on its path."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LIGHTLLM_OTEL")}
    # CUPTI stays loaded once it is: taking it down and up again is not safe with graphs that exist already.
    environ |= {"DISABLE_CUPTI_LAZY_REINIT": "1", "TEARDOWN_CUPTI": "0", "TOKENIZERS_PARALLELISM": "false"}
    environ.setdefault("LOADWORKER", "8")
    folders = list(map(str, first))
    if importlib.util.find_spec("torchvision") is None:  # LightLLM imports it; text needs none of it
        folders.append(str(DEMO / "stand_in"))
    if cpu:
        folders.append(str(DEMO / "cpu"))
        environ |= {"LIGHTLLM_ON_CPU": version, "OMP_NUM_THREADS": "1"}
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*folders, environ.get("PYTHONPATH", "")]))
    return environ


def run(command: Sequence[str], cpu: bool, limit: float, first: Sequence[Path] = (), version: str = "new") -> str:
    """Run a child to its end; a sentence when that was not a good one. It ends with what it has started itself."""
    environ = environment(cpu, first, version)
    process = subprocess.Popen([sys.executable, *command], env=environ, start_new_session=True)
    try:
        status = process.wait(limit)
    except BaseException as error:
        process.terminate()  # unwinds: servers that it has started end with it
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_SECONDS)
        if isinstance(error, subprocess.TimeoutExpired):
            return f"not done after {limit:.0f} s"
        raise
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return f"ended with status {status}" if status else ""


def wait_for(processes: Sequence[subprocess.Popen[bytes]], limit: float) -> str:
    """A sentence when they did not all come to a good end. When one has died, the others wait for it in vain."""
    deadline = time.monotonic() + limit
    while any(process.poll() is None for process in processes):
        bad = [rank for rank, process in enumerate(processes) if process.poll()]
        if bad:
            return f"rank {bad[0]} ended with status {processes[bad[0]].returncode}"
        if time.monotonic() > deadline:
            return f"not done after {limit:.0f} s"
        time.sleep(0.2)
    bad = [rank for rank, process in enumerate(processes) if process.returncode]
    return f"rank {bad[0]} ended with status {processes[bad[0]].returncode}" if bad else ""


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Each of its own session, with all that it has started."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def checkpoint_of(work: Path, shape: str, cpu: bool) -> Path:
    """Written once; torch must be there already, and its memory is given back."""
    import checkpoint
    import torch

    dtype = "float32" if cpu else "float16"
    folder = work / f"{shape}-{dtype}"
    if not (folder / "whole").exists():
        checkpoint.write(folder, checkpoint.SHAPES[shape], dtype)
        (folder / "whole").touch()
        if torch.cuda.is_available() and not cpu:
            torch.cuda.empty_cache()
    return folder


def build(
    arguments: argparse.Namespace, shape: str, tokens: int, graph_batches: Sequence[int], graphs: bool = True
) -> Any:
    """A StaticModel with room for ``tokens`` in its KV cache; on a CPU it never has graphs."""
    weights = checkpoint_of(arguments.work, shape, arguments.cpu)
    say(f"checkpoint {shape} is there")
    from static_model import SPARE, StaticModel

    max_length = CPU_MAX_LENGTH if arguments.cpu else MAX_LENGTH
    model = StaticModel(
        weights, arguments.source, max(tokens, max_length + SPARE), max(graph_batches), graphs and not arguments.cpu,
        nccl_port=arguments.nccl_port, max_length=max_length, graph_batches=graph_batches,
        arguments=["--data_type", "float32"] if arguments.cpu else [],
    )  # fmt: skip
    # Garbage is collected before every pass; without this, each time among all objects of torch and LightLLM too.
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # or what is frozen is reported as leaked
    return model


def stay_on_one_core() -> None:
    """For the calling thread, and those that it starts from here on: a step takes longer after each move to another."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


class RowsFile:
    """Rows of a child, written whenever there are more."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[dict[str, Any]] = []

    def keep(self, rows: Sequence[dict[str, Any]]) -> None:
        self._rows += rows
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(self._rows, default=float))
        new.replace(self._path)
