"""Live control of a real server, with all of its ranks: off, and on again, without a restart."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from lightllm_otel.records.control import AHEAD

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Observed

# Tokens: more forwards than two orders lie ahead. One that a test before this one has left may still have to be followed first.
REACHES = 2 * AHEAD + 4
LAYERS = 2


def ctl(observed: Observed, python: Path, *words: str) -> str:
    command = [str(python), "-m", "lightllm_otel", "ctl", *words]
    environment = {**os.environ, "LIGHTLLM_OTEL_DIR": str(observed.folder)}
    done = subprocess.run(
        command, env=environment, cwd=observed.folder, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_live_control_is_followed_by_every_rank_without_a_restart(observed: Observed, wheel_python: Path) -> None:
    ranks = observed.host.tp
    assert "off" in ctl(observed, wheel_python, "off")
    observed.server.generate("until the order holds", REACHES)
    before = observed.settled()
    assert len(observed.server.generate("not counted", 3).token_ids) == 3
    assert observed.settled().steps("decode") == before.steps("decode")

    assert "one decode step in 1" in ctl(observed, wheel_python, "operators", "every", "1")
    observed.server.generate("until this order holds", REACHES)
    before = observed.settled()
    observed.server.generate("counted again", 3)
    steps = (2 + observed.host.overlaps) * ranks
    after = observed.settled(lambda metrics: metrics.steps("decode") >= before.steps("decode") + steps)
    assert (after.operators() - before.operators())["decode", "ffn"] == steps * LAYERS
    assert after.total("lightllm_otel_errors_total") == 0
