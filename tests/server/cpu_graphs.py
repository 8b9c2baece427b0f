"""Timestamps inside CUDA graphs where there is no CUDA, for servers on the CPU whose graphs are recorded (deploy/demo/cpu).

Started by a .pth file where CPU_GRAPHS is set. LightLLM's own capture, warm-up, padding, replay and copying of inputs stay
as they are, and so does our package but for the two kernels that need a GPU. Ranks tell each other before every replay of
a graph with collectives what is in it, as a custom all_reduce would find out the hard way.
"""

import hashlib
import time
from typing import Any

import recorded_graphs
import wrapt


class HostKernels:
    """The kernels of ``lightllm_otel.worker.gpu.timestamp_kernels``, on tensors of the CPU and with the host's time."""

    detail = "test"

    def timestamp(self, cells: Any, at: int) -> None:
        times = cells.numpy()

        def timestamp() -> None:
            times[at] = time.perf_counter_ns()

        recorded_graphs.launch(timestamp)

    def publish(self, cells: Any, slots: Any, counter: Any, count: int, stride: int) -> None:
        times, read, replays = cells.numpy(), slots.numpy(), counter.numpy()

        def publication() -> None:
            slot = read[replays[0] % (len(read) // stride) * stride :]
            slot[1 : count + 1] = times[:count]
            replays[0] += 1
            slot[0] = replays[0]

        # On a GPU a capture runs nothing; here it would count as a replay.
        recorded_graphs.record(publication, "publication") if recorded_graphs.is_capturing() else publication()


def host_kernels(module: Any) -> None:
    module._WAYS = (("host", lambda capacity: module.KernelTimestamps(HostKernels(), capacity)),)


def replay_the_same_on_all_ranks() -> None:
    replay = recorded_graphs.CUDAGraph.replay

    def compared(self: recorded_graphs.CUDAGraph) -> None:
        import torch.distributed as dist

        names = [name for name, _ in self.launches]
        if any(name.startswith("c10d::") for name in names) and dist.get_world_size() > 1:
            said: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(said, f"{len(names)} {hashlib.sha256(' '.join(names).encode()).hexdigest()}")
            if len(set(said)) > 1:
                print(f"ranks replay different graphs: {said}", flush=True)
                raise RuntimeError("foreign buffers")
        replay(self)

    recorded_graphs.CUDAGraph.replay = compared


def few_pairs(module: Any) -> None:
    """A replay takes half a second here, and what it costs means nothing."""
    module.PAIRS = 3


wrapt.register_post_import_hook(few_pairs, "lightllm_otel.worker.gpu.calibration")
wrapt.register_post_import_hook(few_pairs, "lightllm_otel.worker.host.graph_cost")
wrapt.register_post_import_hook(host_kernels, "lightllm_otel.worker.gpu.timestamp_kernels")
replay_the_same_on_all_ranks()
