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
_rest = [entry for entry in sys.path if Path(entry).resolve() != _here]
_hidden = importlib.machinery.PathFinder.find_spec("sitecustomize", _rest)
if _hidden is not None and _hidden.loader is not None:
    _hidden.loader.exec_module(importlib.util.module_from_spec(_hidden))
