"""Launcher of processes started by ``lightllm-otel run``: starts the plugin, then the sitecustomize that this file hides."""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path


def _start(here):
    # Beside the package where it is installed, inside it in a checkout.
    for folder in (here.parents[2], here.parent):
        file = folder / "_lightllm_otel_boot.py"
        if "_lightllm_otel_boot" not in sys.modules and file.exists():
            spec = importlib.util.spec_from_file_location("_lightllm_otel_boot", file)
            boot = importlib.util.module_from_spec(spec)
            sys.modules["_lightllm_otel_boot"] = boot
            spec.loader.exec_module(boot)
    if "_lightllm_otel_boot" in sys.modules:
        sys.modules["_lightllm_otel_boot"].start()


def _hand_over(here):
    """Run the sitecustomize that comes after this one on the path."""
    places = [Path(entry or ".").resolve() for entry in sys.path]
    rest = sys.path[places.index(here) + 1 :] if here in places else []
    hidden = importlib.machinery.PathFinder.find_spec("sitecustomize", rest)
    if hidden is not None and hidden.loader is not None:
        module = importlib.util.module_from_spec(hidden)
        sys.modules["sitecustomize"] = module
        hidden.loader.exec_module(module)


# The hidden one may itself run any other on the path, including this one. The second time there is nothing left to do.
if not hasattr(sys, "_lightllm_otel_launched"):
    sys._lightllm_otel_launched = True
    _start(Path(__file__).resolve().parent)
    _hand_over(Path(__file__).resolve().parent)
