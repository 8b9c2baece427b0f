import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / name) for name in ("tests", "tests/docs", "docs", "benchmarks/lib", "grafana/rules")]

from promtools import tools  # noqa: E402


@pytest.fixture(params=tools("promtool"))
def promtool(request):
    return request.param


@pytest.fixture(params=tools("prometheus"))
def prometheus(request):
    return request.param
