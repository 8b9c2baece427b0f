import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from promtools import tools


@pytest.fixture(params=tools("promtool"))
def promtool(request):
    return request.param


@pytest.fixture(params=tools("prometheus"))
def prometheus(request):
    return request.param
