"""The plugin's hooks on modules that a test made, by the last part of the names of LightLLM's modules."""

from __future__ import annotations

from lightllm_otel.patch import seams
from lightllm_otel.patch.contracts import HOOKS


def hook(session, hooks=HOOKS, **modules):
    """Wrap what the table names in these modules, as their import would: ``hook(session, basemodel=…, cuda_graph=…)``."""
    for name, module in modules.items():
        seams.patch(
            module, [row for row in hooks if row.module.split(".", 1)[1].endswith(name.replace("__", "."))], session
        )
