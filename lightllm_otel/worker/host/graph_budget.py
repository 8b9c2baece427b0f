"""Budget of instrumented graphs: the batch sizes that fit into the memory and the time that the settings allow."""

from __future__ import annotations

from collections.abc import Sequence

from lightllm_otel.settings import Settings
from lightllm_otel.worker.host.sizes import spread

RESERVE_BYTES = 256 << 20  # stay this far from the end of the GPU's memory
# Estimates for one instrumented graph, before one exists: without NCCL's kernels, and with them (a mean of eight).
GRAPH_BYTES, GRAPH_BYTES_NCCL = 5 << 20, 12 << 20
GRAPH_SECONDS = 0.15


class GraphBudget:
    """Choice of batch sizes by what graphs take. ``bytes``, ``seconds``: GPU memory and start-up time taken so far."""

    def __init__(self, settings: Settings) -> None:
        self.bytes = 0
        self.seconds = 0.0
        self._settings = settings

    def choose(self, host_sizes: Sequence[int], ranks: int, free_bytes: int) -> tuple[str, frozenset[int]]:
        """Return ``(problem, sizes)``: a sentence if no graph can be captured, else an empty one and the sizes to capture.

        ``free_bytes``: free memory of the GPU.
        """
        wanted = self._settings.graph_batch_sizes
        sizes = frozenset(size for size in host_sizes if not wanted or size in wanted)
        if not sizes:
            return (
                f"LIGHTLLM_OTEL_GRAPH_BATCH_SIZES names none of the sizes that the server captures: {list(host_sizes)}",
                sizes,
            )
        each = GRAPH_BYTES if ranks == 1 else GRAPH_BYTES_NCCL
        if not wanted:  # sizes that the user names are not limited by the budget
            budget = min((self._settings.graph_mib << 20) / each, self._settings.graph_seconds / GRAPH_SECONDS)
            sizes = spread(sizes, max(int(budget), 1))
        needed = RESERVE_BYTES + each * len(sizes)
        if free_bytes < needed:
            return (f"{free_bytes >> 20} MiB of GPU memory are free, {needed >> 20} MiB are needed; lower --mem_fraction, "
                    "LIGHTLLM_OTEL_GRAPH_MIB or the number of LIGHTLLM_OTEL_GRAPH_BATCH_SIZES"), sizes  # fmt: skip
        return "", sizes

    def affords(self, batch: int, planned: frozenset[int], made: int) -> bool:
        """Tell whether the graph for ``batch`` is still affordable, judged by the ``made`` graphs so far.

        The host captures the largest size first, and the small sizes matter as much.
        """
        settings = self._settings
        if not made or settings.graph_batch_sizes:
            return True
        left = [size for size in planned if size <= batch]
        # Each graph takes time twice: now, and when it is checked on other inputs after the host's last capture.
        budget = min(((settings.graph_mib << 20) - self.bytes) / max(self.bytes / made, 1.0),
                     (settings.graph_seconds - self.seconds) / max(self.seconds / made, 1e-3))  # fmt: skip
        return budget >= 1 and batch in spread(left, int(budget))
