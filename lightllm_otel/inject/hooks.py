"""Wrap the functions of LightLLM that the table of contracts names, each when its module is imported.

Wrapped at the definition, so that every later ``from … import`` gets the wrapper. No wrapper repeats a signature of
LightLLM's: arguments are handed on as they came, and read by name.
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
    graphs.checking_memory, graphs.warming_up, graphs.capturing, graphs.capturing_whole, graphs.replaying,
    graphs.replaying_whole, graphs.replaying_prefill,
    idle.asking, idle.emptied, idle.ticking,
    health.watching_health,
    requests.generating, requests.encoding, requests.tokenised_by_status,
)  # fmt: skip
MAKERS: Mapping[str, Maker] = {maker.__name__: maker for maker in _MAKERS}
_OF_GRAPHS = ("CudaGraph.", "PrefillCudaGraph.")
_OF_REQUESTS = ("generating", "encoding", "tokenised_by_status")


def patch(module: ModuleType, hooks: Iterable[Hook], session: Session) -> None:
    """Wrap what these rows name in a module that has just been imported; a row that does not fit is left alone, and noted."""
    for hook in hooks:
        state = "our own part failed; the log says how"
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
    if hook.maker == "grouped":  # its methods are wrapped once there is a model to measure
        session.group_class = host
        return FITS
    if hook.maker in _OF_REQUESTS and not session.otel_environment.traces:
        return FITS  # nobody asks for spans: there is nothing to wrap
    arguments = Arguments(host)
    own = getattr(owner, "__dict__", {}).get(name)
    problem = _problem(hook, own, arguments, session.settings.graphs)
    if problem:
        return problem
    patch_set = session.live if hook.live else session.patch_set
    patch_set.replace(owner, name, lambda host: MAKERS[hook.maker](host, session, arguments, hook))
    return FITS


def _problem(hook: Hook, own: Any, arguments: Arguments, graphs: GraphPolicy) -> str:
    """Say why the host's function is left alone; empty when nothing speaks against wrapping it."""
    if graphs is GraphPolicy.OFF and hook.place.startswith(_OF_GRAPHS):
        return "LIGHTLLM_OTEL_GRAPHS=off"
    if isinstance(own, (staticmethod, classmethod, property)):
        return f"it is a {type(own).__name__} in this LightLLM"
    if not arguments.fits(hook.reads):
        wanted = " or ".join(", ".join(names) for names in hook.reads)
        return f"its parameters are ({', '.join(arguments.names)}), and {wanted} is read"
    return ""
