"""Every promtool and amtool that is here."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks" / "lib"), str(ROOT / "grafana" / "rules")]

from promtools import tools  # noqa: E402


@pytest.fixture(params=tools("promtool"))
def promtool(request):
    return request.param


@pytest.fixture(params=tools("amtool"))
def amtool(request):
    return request.param
