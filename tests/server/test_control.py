"""Live control of a real server, with all of its ranks: off means as without us, and back again."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Host, Observed, Stock

REACHES = 14  # tokens: more forwards than an order lies ahead


def ctl(observed: Observed, python: Path, *words: str) -> str:
    command = [str(python), "-m", "lightllm_otel", "ctl", *words]
    environment = {**os.environ, "LIGHTLLM_OTEL_DIR": str(observed.folder)}
    done = subprocess.run(
        command, env=environment, cwd=observed.folder, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_live_control_is_followed_by_every_rank_and_off_is_as_without_us(
    observed: Observed, wheel_python: Path, stock_of: Callable[[Host], Stock]
) -> None:
    answers = stock_of(observed.host).answers
    assert "off" in ctl(observed, wheel_python, "off")
    observed.server.generate("until the order holds", REACHES)
    before = observed.settled()
    assert observed.ask_all() == answers
    after = observed.settled()
    assert after.steps("decode") == before.steps("decode")
    assert after.total("lightllm_otel_errors_total") == 0

    assert "one decode step in 1" in ctl(observed, wheel_python, "operators", "every", "1")
    observed.server.generate("until the order holds", REACHES)
    before = observed.settled()
    observed.server.generate("counted again", 4)
    ranks = observed.host.tp
    after = observed.settled(lambda metrics: metrics.steps("decode") >= before.steps("decode") + 3 * ranks)
    counted = after.operators() - before.operators()
    assert counted["decode", "ffn"] == 3 * ranks * 2  # two layers
    assert after.total("lightllm_otel_errors_total") == 0
