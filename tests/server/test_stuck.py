"""A rank of a real server is stopped or held up in its work: who is named, and that the server goes on afterwards."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from lightllm_otel.records.folder import lock_owner, ring_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Observed

NEW_TOKENS = 24
NAMED_WITHIN = 30.0  # seconds
HELD, PATIENCE = 5.0, 2.0


def doctor(observed: Observed, python: Path, patience: float = 10.0) -> tuple[int, dict[str, Any]]:
    """Exit status, and what it says of the one server that is alive in this folder."""
    command = [str(python), "-m", "lightllm_otel", "doctor", "--stuck", str(patience), "--json"]
    environment = {**os.environ, "LIGHTLLM_OTEL_DIR": str(observed.folder)}
    done = subprocess.run(
        command, env=environment, cwd=observed.folder, capture_output=True, text=True, check=False, timeout=NAMED_WITHIN
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    (server,) = json.loads(done.stdout)
    return done.returncode, server


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("observed", [("old", 2), ("new", 2)], indirect=True, ids=["old-tp2", "new-tp2"])
def test_a_stopped_rank_is_named_and_the_server_goes_on_when_it_does(
    observed: Observed, wheel_python: Path, rank: int
) -> None:
    (folder,) = (path.parent for path in observed.folder.glob("*/rank-0.ring"))
    model_process = lock_owner(ring_path(folder, rank))
    assert model_process in observed.server.processes()
    status, before = doctor(observed, wheel_python)
    assert (status, before["behind"]) == (0, [])

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(observed.server.generate, f"while rank {rank} is stopped", NEW_TOKENS)

        def works() -> bool:
            now = doctor(observed, wheel_python)[1]["positions"]
            return bool(now[rank]["number"] > before["positions"][rank]["number"])

        observed.wait_until(works, 30, "a step of this request")
        os.kill(model_process, signal.SIGSTOP)
        try:
            began = time.monotonic()
            status, stuck = doctor(observed, wheel_python)
            assert time.monotonic() - began < NAMED_WITHIN
            assert (status, stuck["stuck"], stuck["behind"]) == (1, True, [rank]), stuck
            assert [each["state"] == "T" for each in stuck["positions"]] == [number == rank for number in range(2)]
            assert f"rank {rank} is stopped" in stuck["sentence"]
            _, later = doctor(observed, wheel_python)
            steps = [after["number"] - first["number"] for first, after in zip(stuck["positions"], later["positions"])]
            assert steps[rank] == 0
            assert steps[1 - rank] <= 1  # one that it can enter, and none that it can end
            assert not asked.done()
        finally:
            os.kill(model_process, signal.SIGCONT)
        assert len(asked.result().token_ids) == NEW_TOKENS

    assert len(observed.server.generate("and again", 3).token_ids) == 3
    status, after = doctor(observed, wheel_python)
    assert (status, after["stuck"], after["behind"]) == (0, False, []), after
    assert observed.metrics().total("lightllm_otel_errors_total") == 0


@pytest.mark.parametrize("version", ["old", "new"])
def test_the_operator_that_a_held_host_has_reached_is_shown_in_the_step_that_all_are_in(
    version: str, observe: Callable[..., Observed], wheel_python: Path, tmp_path: Path
) -> None:
    order = tmp_path / "order"
    order.write_text("-1 0")
    observed = observe((version, 2), env={"SLOW_RANK": str(order)})
    assert len(observed.server.generate("nobody is held up", 2).token_ids) == 2
    seen: dict[str, Any] = {}

    def held() -> bool:
        seen.update(doctor(observed, wheel_python, PATIENCE)[1])
        return "look at rank 1 first" in seen["sentence"]

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        order.write_text(f"1 {HELD}")
        asked = pool.submit(observed.server.generate, "while rank 1 is held up", 2)
        try:
            observed.wait_until(held, NAMED_WITHIN, "a step in which rank 1 has launched the least")
        finally:
            order.write_text("-1 0")
        peer, slow = seen["positions"]
        assert (slow["number"], slow["phase"]) == (peer["number"], peer["phase"])
        # On the CPU the peer's host waits in the all_reduce behind the feed-forward in which the other one is held up.
        assert slow["progress"]["operator"] == "ffn_norm"
        assert (peer["progress"]["operator"], peer["progress"]["layer"]) == ("ffn", slow["progress"]["layer"])
        assert len(asked.result().token_ids) == 2
    assert (doctor(observed, wheel_python)[0], observed.metrics().total("lightllm_otel_errors_total")) == (0, 0)
