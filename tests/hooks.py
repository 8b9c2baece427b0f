"""Install the plugin's hooks on a fake host's modules, through the function that an import calls."""

from __future__ import annotations

from lightllm_otel.contracts.table import HOOKS
from lightllm_otel.inject.hooks import patch


def install(host, session, hooks=HOOKS) -> None:
    """Install these rows of the table while each module of the host is imported, with this session and its guard."""

    def imported(name, module):
        patch(module, [hook for hook in hooks if hook.module == name], session)

    host.load(imported)


def hook(session, hooks=HOOKS, **modules) -> None:
    """Install rows on single modules, named by the last parts of their names: ``hook(session, basemodel__basemodel=…)``."""
    for name, module in modules.items():
        rows = [row for row in hooks if row.module.split(".", 1)[1].endswith(name.replace("__", "."))]
        patch(module, rows, session)
