"""With this folder on PYTHONPATH and LIGHTLLM_ON_CPU=old|new, every Python process takes the CPU for a GPU."""

import importlib.machinery
import importlib.util
import os
import sys

if os.environ.get("LIGHTLLM_ON_CPU"):
    import cuda_is_cpu

    cuda_is_cpu.install_with_torch()

# There can be one sitecustomize only; the next one on the path must not be lost because of this one.
_here = os.path.dirname(os.path.abspath(__file__))
_rest = [entry for entry in sys.path if os.path.abspath(entry) != _here]
_hidden = importlib.machinery.PathFinder.find_spec("sitecustomize", _rest)
if _hidden is not None and _hidden.loader is not None:
    _hidden.loader.exec_module(importlib.util.module_from_spec(_hidden))
