"""What stands for CUDA graphs on the CPU behaves in a replay as a graph on a GPU does."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed here: make venv")

CPU = Path(__file__).resolve().parents[2] / "deploy" / "demo" / "cpu"
sys.path.insert(0, str(CPU))

import host_streams  # noqa: E402
import recorded_graphs  # noqa: E402


@pytest.fixture
def cuda() -> Any:
    """A stand-in for ``torch.cuda``; torch itself is left alone."""
    made = types.SimpleNamespace()
    recorded_graphs.install(made)
    host_streams.install(made)
    return made


def test_a_replay_sees_what_was_copied_into_its_inputs_and_writes_to_its_outputs(cuda: Any) -> None:
    x, weight = torch.ones(2, 3), torch.full((3, 3), 2.0)
    graph = cuda.CUDAGraph()
    with cuda.graph(graph):
        y = (x @ weight).add_(1.0)
        half = y[:, :1].clone()
    x.copy_(torch.full((2, 3), 10.0))
    graph.replay()
    assert y.tolist() == [[61.0] * 3] * 2
    assert half.tolist() == [[61.0]] * 2


def test_numbers_and_tensors_of_python_are_those_of_the_capture(cuda: Any) -> None:
    state = types.SimpleNamespace(x=torch.ones(2), factor=2.0)
    graph = cuda.CUDAGraph()
    with cuda.graph(graph):
        y = state.x * state.factor
    instrumented, state.x, state.factor = state.x, torch.full((2,), 7.0), 5.0
    graph.replay()
    assert y.tolist() == [2.0, 2.0]
    instrumented.fill_(3.0)
    graph.replay()
    assert y.tolist() == [6.0, 6.0]


def test_a_kernel_whose_result_was_found_ready_is_not_in_the_graph(cuda: Any) -> None:
    """The kernels of LightLLM's attention keep on the state what they compute once: who finds it there does not compute it."""
    x, state = torch.ones(2), types.SimpleNamespace()

    def forward() -> Any:
        if not hasattr(state, "doubled"):
            state.doubled = x * 2
        return state.doubled + 1

    whole, lacking = cuda.CUDAGraph(), cuda.CUDAGraph()
    with cuda.graph(whole):
        right = forward()
    with cuda.graph(lacking):
        wrong = forward()
    x.fill_(10.0)
    lacking.replay()
    assert wrong.tolist() == [3.0, 3.0]
    whole.replay()
    assert right.tolist() == [21.0, 21.0]


def test_a_value_cannot_be_read_on_the_host_during_a_capture(cuda: Any) -> None:
    x = torch.ones(2)
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"), cuda.graph(cuda.CUDAGraph()):
        x.sum().item()
    assert not cuda.is_current_stream_capturing()
    assert x.sum().item() == 2.0


def test_only_the_thread_that_captures_is_recorded(cuda: Any) -> None:
    x = torch.ones(2)
    graph = cuda.CUDAGraph()
    with cuda.graph(graph):
        y = x + 1
        other = threading.Thread(target=lambda: x.add_(1.0))
        other.start()
        other.join()
    graph.replay()
    assert x.tolist() == [2.0, 2.0]
    assert y.tolist() == [3.0, 3.0]


def test_a_capture_can_be_left_and_another_begun_before_it_continues_in_a_third(cuda: Any) -> None:
    """LightLLM's prefill graphs are cut at every attention."""
    x = torch.ones(2)
    pieces = [cuda.graph(cuda.CUDAGraph()), cuda.graph(cuda.CUDAGraph())]
    pieces[0].__enter__()
    a = x + 1
    pieces[0].__exit__(None, None, None)
    with cuda.graph(cuda.CUDAGraph()):
        a.mul_(100.0)
    a.div_(100.0)
    pieces[1].__enter__()
    b = a * 2
    pieces[1].__exit__(None, None, None)
    x.fill_(4.0)
    for piece in pieces:
        piece.cuda_graph.replay()
    assert (a.tolist(), b.tolist()) == ([5.0, 5.0], [10.0, 10.0])


def test_events_are_recorded_again_in_a_replay_and_streams_are_the_threads_own(cuda: Any) -> None:
    before, after = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    with pytest.raises(ValueError, match="must be recorded"):
        before.elapsed_time(after)
    graph = cuda.CUDAGraph()
    with cuda.graph(graph):
        assert cuda.current_stream() != cuda.default_stream()
        before.record()
        after.record()
    first = before.elapsed_time(after)
    assert first >= 0
    graph.replay()
    assert before.elapsed_time(after) != first

    side, seen = cuda.Stream(), []
    with cuda.stream(side):
        assert cuda.current_stream() is side
        thread = threading.Thread(target=lambda: seen.append(cuda.current_stream()))
        thread.start()
        thread.join()
    assert seen == [cuda.default_stream()]
    assert cuda.current_stream() is cuda.default_stream()


ONE_RANK = """
import sys
import torch, torch.distributed as dist, triton, triton.language as tl

@triton.jit
def add_one(x, y, size, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at < size) + 1, mask=at < size)

rank = int(sys.argv[1])
dist.init_process_group("nccl", init_method="file://" + sys.argv[2], world_size=2, rank=rank)
x, y, both = torch.zeros(4, device="cuda"), torch.empty(4, device="cuda"), torch.empty(8, device="cuda")
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    add_one[(1,)](x, y, 4, BLOCK=4)
    dist.all_reduce(y)
    dist.all_gather_into_tensor(both, y * (rank + 1))
x.fill_(10.0 * (rank + 1))
graph.replay()
print([name for name, _ in graph.launches], y.tolist(), both.tolist())
dist.destroy_process_group()
"""


def test_triton_kernels_and_collectives_are_replayed_on_every_rank(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(ONE_RANK)
    environment = {**os.environ, "PYTHONPATH": str(CPU), "LIGHTLLM_ON_CPU": "new", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path / "meeting")],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for rank in ranks:
        said, problems = rank.communicate(timeout=120)
        assert rank.returncode == 0, problems
        # 11 + 21 on both ranks; rank 1 gathers twice that.
        assert "[32.0, 32.0, 32.0, 32.0] [32.0, 32.0, 32.0, 32.0, 64.0, 64.0, 64.0, 64.0]" in said
        assert "add_one" in said
        assert "c10d::allreduce_" in said
