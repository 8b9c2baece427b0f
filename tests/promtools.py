"""Prometheus' own tools, of every version that is here: those in the path, and newer ones that ``.ci/run`` unpacks."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NEWER = ROOT / ".cache" / "prometheus3" / "usr" / "bin"


def tools(name):
    """Parameters for a fixture; where there is none, one that skips."""
    found = [shutil.which(os.environ.get("PROMTOOL", name) if name == "promtool" else name), str(NEWER / name)]
    paths = dict.fromkeys(path for path in found if path and Path(path).exists())
    missing = pytest.param(
        None, marks=pytest.mark.skip(reason=f"{name} is not installed (Debian: apt-get install {name})")
    )
    return list(paths) or [missing]


def major(tool):
    """2 or 3."""
    done = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True)
    return int((done.stdout + done.stderr).partition("version ")[2].partition(".")[0])
