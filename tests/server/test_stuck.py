"""A rank of a real server is stopped in the middle of its work: who is named, and that the server goes on afterwards."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from lightllm_otel.ring.folder import lock_owner, ring_path

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Observed

NEW_TOKENS = 24
NAMED_WITHIN = 30.0  # seconds


def doctor(observed: Observed, python: Path) -> tuple[int, dict[str, Any]]:
    """Exit status, and what it says of the one server that is alive in this folder."""
    command = [str(python), "-m", "lightllm_otel", "doctor", "--stuck", "--json"]
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
