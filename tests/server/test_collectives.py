"""Two ranks of a real server, one of them slow: who waits, who is named, and that the transfer stays what it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Metrics, Observed

LAYERS = 2
SECONDS = 0.05
STEPS = 12
NAMED = 0.95
FFN = {"site": "ffn", "phase": "decode"}
PREFIX = "lightllm_gpu_collective"


def change(before: Metrics, after: Metrics, name: str, **labels: str) -> float:
    return after.total(f"{PREFIX}_{name}", **labels) - before.total(f"{PREFIX}_{name}", **labels)


@pytest.mark.parametrize("version", ["old", "new"])
def test_a_slow_rank_is_named_its_peer_waits_and_the_transfer_stays(
    version: str, observe: Callable[..., Observed], tmp_path: Path
) -> None:
    order = tmp_path / "order"
    order.write_text("-1 0")
    observed = observe((version, 2), env={"SLOW_RANK": str(order)})

    def measured(slow: int) -> tuple[Metrics, Metrics]:
        order.write_text(f"{slow} {SECONDS}")
        before = observed.settled()
        calls = before.total(f"{PREFIX}_transfer_seconds_count", **FFN)
        observed.server.generate(f"slow rank {slow}", STEPS + 1)
        wanted = calls + STEPS * LAYERS
        # The new host may compute a step more than it answers with.
        return before, observed.settled(
            lambda metrics: metrics.total(f"{PREFIX}_transfer_seconds_count", **FFN) >= wanted
        )

    plain = measured(-1)
    usual = change(*plain, "transfer_seconds_sum", **FFN)
    assert change(*plain, "payload_bytes_total", operator="all_reduce", implementation="gloo", **FFN) > 0
    for slow, waits in ((0, "1"), (1, "0")):
        seen = measured(slow)
        late = change(*seen, "last_arrivals_total", rank=str(slow), **FFN)
        assert late >= NAMED * STEPS * LAYERS
        waited = change(*seen, "rank_wait_seconds_total", rank=waits, **FFN)
        assert waited >= NAMED * STEPS * LAYERS * SECONDS
        assert (
            change(*seen, "transfer_seconds_sum", **FFN) - usual < 0.2 * waited
        )  # two cores are shared by all of this
    assert observed.metrics().total("lightllm_otel_steps_unmatched_total") == 0
