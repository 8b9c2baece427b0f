"""Every promtool that is here: the one in the path, and a newer one that ``.ci/run`` unpacks."""

import os
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks"), str(ROOT / "grafana" / "rules")]
NEWER = ROOT / ".cache" / "prometheus3" / "usr" / "bin"


def tools(name):
    found = [shutil.which(os.environ.get("PROMTOOL", name) if name == "promtool" else name), str(NEWER / name)]
    paths = dict.fromkeys(path for path in found if path and Path(path).exists())
    missing = pytest.param(
        None, marks=pytest.mark.skip(reason=f"{name} is not installed (Debian: apt-get install {name})")
    )
    return list(paths) or [missing]


@pytest.fixture(params=tools("promtool"))
def promtool(request):
    return request.param


@pytest.fixture(params=tools("amtool"))
def amtool(request):
    return request.param
