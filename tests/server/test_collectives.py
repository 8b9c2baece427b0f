"""Two ranks of a real server, one of them slow: who waits, who is named, and that the transfer stays what it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Metrics, Observed

LAYERS = 2
SECONDS = 0.1
STEPS = 12
CALLS = STEPS * LAYERS
NAMED = 0.95
FFN = {"site": "ffn", "phase": "decode"}
PREFIX = "lightllm_gpu_collective"
# The wait's share that may be left in a transfer. With gloo that is the work of two processes on shared cores, and takes longer
# when the peer has to wake up first: some milliseconds on a busy machine. Equal transfers are for a GPU to show.
LEAKED = 0.1


class Change:
    """What two readings of the metrics differ by."""

    def __init__(self, before: Metrics, after: Metrics) -> None:
        self.before, self.after = before, after

    def total(self, name: str, **labels: str) -> float:
        return self.after.total(f"{PREFIX}_{name}", **labels) - self.before.total(f"{PREFIX}_{name}", **labels)

    def median(self, name: str, **labels: str) -> float:
        """Of a histogram, as histogram_quantile would have it, in seconds."""
        bounds = {each.labels["le"] for each in self.after.samples if each.name == f"{PREFIX}_{name}_bucket"}
        below = sorted((float(le), self.total(f"{name}_bucket", le=le, **labels)) for le in bounds)
        start, counted, half = 0.0, 0.0, below[-1][1] / 2
        for end, count in below:
            if count >= half:
                return start + (end - start) * (half - counted) / (count - counted)
            start, counted = end, count
        raise AssertionError("a histogram without +Inf")


@pytest.mark.parametrize("version", ["old", "new"])
def test_a_slow_rank_is_named_its_peer_waits_and_the_transfer_stays(
    version: str, observe: Callable[..., Observed], tmp_path: Path
) -> None:
    order = tmp_path / "order"
    order.write_text("-1 0")
    observed = observe((version, 2), env={"SLOW_RANK": str(order)})

    def measured(slow: int) -> Change:
        order.write_text(f"{slow} {SECONDS}")
        before = observed.settled()
        calls = before.total(f"{PREFIX}_transfer_seconds_count", **FFN)
        observed.server.generate(f"slow rank {slow}", STEPS + 1)
        # The new host may compute a step more than it answers with.
        return Change(
            before,
            observed.settled(lambda metrics: metrics.total(f"{PREFIX}_transfer_seconds_count", **FFN) >= calls + CALLS),
        )

    first, slowed, last = measured(-1), {slow: measured(slow) for slow in (0, 1)}, measured(-1)
    assert first.total("payload_bytes_total", operator="all_reduce", implementation="gloo", **FFN) > 0
    usual = max(plain.median("transfer_seconds", **FFN) for plain in (first, last))
    most = max(plain.total("transfer_seconds_sum", **FFN) for plain in (first, last))
    for slow, seen in slowed.items():
        peer = 1 - slow
        assert seen.total("last_arrivals_total", rank=str(slow), **FFN) >= NAMED * CALLS
        assert seen.total("last_arrivals_total", rank=str(peer), **FFN) <= (1 - NAMED) * CALLS
        waited = seen.total("rank_wait_seconds_total", rank=str(peer), **FFN)
        assert waited >= NAMED * CALLS * SECONDS
        assert seen.total("rank_wait_seconds_total", rank=str(slow), **FFN) <= (1 - NAMED) * waited
        assert 0 < seen.median("transfer_seconds", **FFN) <= usual + LEAKED * SECONDS
        assert seen.total("transfer_seconds_sum", **FFN) <= most + LEAKED * waited
    assert observed.metrics().total("lightllm_otel_steps_unmatched_total") == 0
