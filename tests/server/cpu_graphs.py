"""CUDA graphs where there is no CUDA, for servers on the CPU: a graph is the function that was captured, run again.

Started by a .pth file where CPU_GRAPHS is set. LightLLM's own warm-up, padding, replay and copying of inputs stay as
they are; only what needs a GPU is replaced: the capture, and in our package the capture and the stamps. Ranks tell each
other before every replay which graph they replay, as a custom all_reduce would find out the hard way.
"""

import copy
import time
from collections.abc import Callable
from typing import Any

import wrapt

OWN = "own"  # a graph without collectives, to calibrate with: each rank replays it as it likes
CALIBRATIONS = ("quantum_of_stamps", "tail_of_twin")
CAPTURING = [False]  # on a GPU nothing runs then; here it does, and must not count as a replay


class Graph:
    def __init__(self, kind: str, run: Callable[[], Any]) -> None:
        self._kind, self._run = kind, run

    def replay(self) -> None:
        import torch.distributed as dist

        if self._kind != OWN and dist.is_initialized() and dist.get_world_size() > 1:
            said: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(said, self._kind)
            if len(set(said)) > 1:
                print(f"ranks replay different graphs: {said}", flush=True)
                raise RuntimeError("foreign buffers")
        self._run()


def capture_on_cpu(module: Any) -> None:
    """LightLLM's capture, with a graph that runs the function again and leaves its outputs where they were."""

    def _capture_decode(self: Any, decode_func: Any, input_ids: Any, infer_state: Any) -> Any:
        batch = input_ids.shape[0]
        infer_state.max_len_in_batch = self.graph_max_len_in_batch
        infer_state.total_token_num = self.graph_max_len_in_batch * batch
        pristine = copy.copy(infer_state)
        decode_func(input_ids, copy.copy(pristine))
        with module.lightllm_capture_graph(infer_state.dist_group):
            output = decode_func(input_ids, infer_state)

        def run() -> None:
            output.logits.copy_(decode_func(input_ids, copy.copy(pristine)).logits)

        # The inputs that the host copies into are the tensors of infer_state; the shallow copy shares them.
        self.graph[batch] = (Graph(f"plain {batch}", run), input_ids, infer_state, output)
        self.graph[batch][0].replay()
        return output

    module.CudaGraph._capture_decode = _capture_decode


def graphs_on_cpu(module: Any) -> None:
    def capture(self: Any, pool: Any, body: Callable[[], Any]) -> Graph:
        CAPTURING[0] = True
        try:
            body()
        finally:
            CAPTURING[0] = False
        own = getattr(getattr(body, "func", body), "__qualname__", "").split(".")[0]
        return Graph(OWN if own in CALIBRATIONS else "twin", body)

    def seconds(self: Any, graph: Any) -> float:
        began = time.perf_counter()
        graph.replay()
        return time.perf_counter() - began

    module.TorchGraphs.capture, module.TorchGraphs.seconds = capture, seconds


def stamps_on_cpu(module: Any) -> None:
    import numpy as np

    class HostStamps:
        """The host's time at every mark. A body that runs again counts its marks on, so they go round."""

        source, detail, capacity, branches = "host", "test", 1 << 30, False

        def __init__(self) -> None:
            self._cells: dict[int, float] = {}
            self._first: int | None = None
            self._slots: dict[int, tuple[int, Any]] = {}
            self._published = self._launched = 0

        def stamp(self, at: int, chained: bool = False) -> None:
            if at == 0 or self._first is None:
                self._first = at
            self._cells[at - self._first] = time.perf_counter()

        def join(self) -> None:
            """There is no branch."""

        def publish(self, count: int) -> None:
            if not CAPTURING[0]:
                times = [self._cells[at] for at in sorted(self._cells)]
                self._slots[self._published % module.KEPT] = (self._published + 1, times)
                self._published += 1
            self._cells, self._first = {}, None

        def launched(self) -> int:
            self._launched += 1
            return self._launched - 1

        def intervals(self, replay: int, count: int) -> Any:
            filled, times = self._slots.get(replay % module.KEPT, (0, []))
            if filled > replay + 1:
                raise module.Overwritten(replay)
            if filled < replay + 1 or len(times) != count:
                raise RuntimeError(f"replay {replay} left {len(times)} stamps of {count}, slot of {filled - 1}")
            return np.diff(np.array(times))

    module.choose_stamps = lambda capacity: HostStamps()


wrapt.register_post_import_hook(capture_on_cpu, "lightllm.common.basemodel.cuda_graph")
wrapt.register_post_import_hook(graphs_on_cpu, "lightllm_otel.measure.graphs")
wrapt.register_post_import_hook(stamps_on_cpu, "lightllm_otel.measure.stamps")
