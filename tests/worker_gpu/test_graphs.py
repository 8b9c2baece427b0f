"""Times of CUDA graphs, where torch is not what it was."""

import torch

from lightllm_otel.worker.gpu.graphs import TorchGraphs


class Event:
    """Stands for ``torch.cuda.Event``: two milliseconds between any two."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        """Nothing to wait for."""

    synchronize = record

    def elapsed_time(self, later):
        return 2.0


class Graph:
    replays = 0

    def replay(self):
        self.replays += 1


def test_a_torch_that_cannot_keep_a_gpu_busy_times_replays_all_the_same(monkeypatch):
    """Its ``_sleep`` is private, and the stand-in for a GPU does not have what it calls."""
    monkeypatch.delattr(torch.cuda, "_sleep")
    monkeypatch.setattr(torch.cuda, "Event", Event)
    graph = Graph()
    assert TorchGraphs().seconds(graph) == 2e-3
    assert graph.replays == 1
