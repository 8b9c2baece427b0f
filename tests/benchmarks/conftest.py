import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
BENCHMARKS = TESTS.parent / "benchmarks"
sys.path[:0] = [str(TESTS), str(BENCHMARKS / "lib"), str(BENCHMARKS / "lib" / "inside")]

import _paths  # noqa: E402, F401 - puts the other folders on sys.path
