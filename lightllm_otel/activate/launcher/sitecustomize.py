"""First on PYTHONPATH in processes started by ``lightllm-otel run``: starts us, then the sitecustomize it hides."""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

_here = Path(__file__).resolve().parent
# Beside the package where it is installed, inside it in a checkout.
for _folder in (_here.parents[2], _here.parent):
    _file = _folder / "_lightllm_otel_boot.py"
    if "_lightllm_otel_boot" not in sys.modules and _file.exists():
        _spec = importlib.util.spec_from_file_location("_lightllm_otel_boot", _file)
        _boot = importlib.util.module_from_spec(_spec)
        sys.modules["_lightllm_otel_boot"] = _boot
        _spec.loader.exec_module(_boot)
if "_lightllm_otel_boot" in sys.modules:
    sys.modules["_lightllm_otel_boot"].start()

_rest = [entry for entry in sys.path if Path(entry or ".").resolve() != _here]
_hidden = importlib.machinery.PathFinder.find_spec("sitecustomize", _rest)
if _hidden is not None and _hidden.loader is not None:
    _module = importlib.util.module_from_spec(_hidden)
    sys.modules["sitecustomize"] = _module
    _hidden.loader.exec_module(_module)
