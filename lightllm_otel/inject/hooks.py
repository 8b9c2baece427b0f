"""Hooks of LightLLM's functions: wrap those that the table of contracts names, when their module is imported.

A function is wrapped at its definition, so that every later ``from … import`` gets the wrapper. No wrapper repeats a signature
of LightLLM's: arguments are passed on unchanged, and read by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

from lightllm_otel.contracts.binding import Arguments
from lightllm_otel.contracts.fits import ABSENT, FITS
from lightllm_otel.contracts.table import Hook
from lightllm_otel.frontend import health, requests
from lightllm_otel.records.vocabulary import Stage
from lightllm_otel.settings import GraphPolicy
from lightllm_otel.worker.host import graphs, idle, steps
from lightllm_otel.worker.host.process import Session

Host = Callable[..., Any]
Maker = Callable[[Host, Any, Arguments, Hook], Host]

_MAKERS: tuple[Maker, ...] = (
    steps.constructed, steps.attaching, steps.entered, steps.sampled, steps.ending,
    graphs.checking_memory, graphs.warming_up, graphs.capturing, graphs.capturing_step_only, graphs.replaying,
    graphs.replaying_step_only, graphs.replaying_prefill,
    idle.asking, idle.emptied, idle.ticking,
    health.watching_health,
    requests.generating, requests.encoding, requests.tokenised_by_status,
)  # fmt: skip
MAKERS: Mapping[str, Maker] = {maker.__name__: maker for maker in _MAKERS}
_OF_GRAPHS = ("CudaGraph.", "PrefillCudaGraph.")
_OF_REQUESTS = ("generating", "encoding", "tokenised_by_status")


def patch(module: ModuleType, hooks: Iterable[Hook], session: Session) -> None:
    """Wrap the functions of these rows in a module that has just been imported, and note which rows do not fit."""
    for hook in hooks:
        state = "the plugin failed here; the log says how"
        with session.guard(Stage.PATCH):
            state = _install(hook, module, session)
        session.fits.note(hook.name, state)


def _install(hook: Hook, module: ModuleType, session: Session) -> str:
    owner: Any = module
    *path, name = hook.place.split(".")
    for part in path:
        owner = getattr(owner, part, None)
    host = getattr(owner, name, None)
    if not callable(host):
        return ABSENT
    if hook.maker == "grouped":  # its methods are wrapped when a model is measured
        session.group_class = host
        return FITS
    if hook.maker in _OF_REQUESTS and not session.otel_environment.traces:
        return FITS  # without spans there is nothing to wrap
    arguments = Arguments(host)
    own = getattr(owner, "__dict__", {}).get(name)
    problem = _problem(hook, own, arguments, session.settings.graphs)
    if problem:
        return problem
    patch_set = session.live if hook.live else session.patch_set
    patch_set.replace(owner, name, lambda host: MAKERS[hook.maker](host, session, arguments, hook))
    return FITS


def _problem(hook: Hook, own: Any, arguments: Arguments, graphs: GraphPolicy) -> str:
    """Return why the host's function is not wrapped, or an empty string if it can be wrapped."""
    if graphs is GraphPolicy.OFF and hook.place.startswith(_OF_GRAPHS):
        return "LIGHTLLM_OTEL_GRAPHS=off"
    if isinstance(own, (staticmethod, classmethod, property)):
        return f"it is a {type(own).__name__} in this LightLLM"
    if not arguments.fits(hook.reads):
        wanted = " or ".join(", ".join(names) for names in hook.reads)
        return f"its parameters are ({', '.join(arguments.names)}), but the plugin reads {wanted}"
    return ""
