"""With this folder on PYTHONPATH and LIGHTLLM_ON_CPU=old|new, every Python process takes the CPU for a GPU."""

import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path

if os.environ.get("LIGHTLLM_ON_CPU"):
    import cuda_is_cpu

    cuda_is_cpu.install_with_torch()

# There can be one sitecustomize only; the next one on the path must not be lost because of this one.
_here = Path(__file__).resolve().parent
_places = [Path(entry or ".").resolve() for entry in sys.path]
_rest = sys.path[_places.index(_here) + 1 :] if _here in _places else []
_hidden = importlib.machinery.PathFinder.find_spec("sitecustomize", _rest)
if _hidden is not None and _hidden.loader is not None:
    _hidden.loader.exec_module(importlib.util.module_from_spec(_hidden))
