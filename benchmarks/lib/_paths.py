"""Put the folders of the benchmarks on sys.path: importing this module lets a script import those of other folders.

A module that scripts of several folders import lies in lib; module names are unique in all folders.
"""

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent
DEMO = ROOT / "deploy" / "demo"
RESULTS = BENCHMARKS / "results"
QUESTIONS = ("hosts", "cost", "accuracy", "collectives", "analyses", "statistics", "alerts", "faults")

_folders = [str(folder) for folder in (*(BENCHMARKS / name for name in ("lib", *QUESTIONS)), DEMO)]
sys.path[:0] = [folder for folder in _folders if folder not in sys.path]
