"""What ``make demo`` starts ends with it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "deploy" / "demo"


def started_with(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []  # it is gone


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGHUP], ids=lambda ending: ending.name)
def test_a_demo_that_is_told_to_end_leaves_no_server(plain_environment: dict[str, str], tmp_path: Path, ending) -> None:
    """As when its terminal is closed. The server has a session of its own, and once went on for good."""
    mark = f"LIGHTLLM_OTEL_DIR={tmp_path}"
    environment = {**plain_environment, "LIGHTLLM_OTEL_DIR": str(tmp_path)}
    running = subprocess.Popen(
        [sys.executable, str(DEMO / "demo.py")], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
    )

    def servers() -> list[int]:
        pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return [pid for pid in pids if pid != running.pid and mark in started_with(pid)]

    try:
        deadline = time.monotonic() + 60
        while not servers():
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(ending)
        assert running.wait(timeout=40) == 128 + ending
        assert servers() == []
    finally:
        running.kill()
        running.wait()
        for pid in servers():
            os.kill(pid, signal.SIGKILL)
