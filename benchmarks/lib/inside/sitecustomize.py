"""Log the steps of a model process, for served.py: BENCHMARK_STEPS names the folder. First on PYTHONPATH."""

import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path

if os.environ.get("BENCHMARK_STEPS") and not any("resource_tracker" in word for word in sys.orig_argv):
    from inside_model import hooks

    hooks.register(Path(os.environ["BENCHMARK_STEPS"]))

# There can be one sitecustomize only; the next one on the path must not be lost because of this one.
_here = Path(__file__).resolve().parent
_places = [Path(entry or ".").resolve() for entry in sys.path]
_rest = sys.path[_places.index(_here) + 1 :] if _here in _places else []
_hidden = importlib.machinery.PathFinder.find_spec("sitecustomize", _rest)
if _hidden is not None and _hidden.loader is not None:
    _hidden.loader.exec_module(importlib.util.module_from_spec(_hidden))
