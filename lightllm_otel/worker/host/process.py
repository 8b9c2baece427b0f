"""What the hooks in LightLLM's modules ask of their process."""

from __future__ import annotations

from typing import Any, Optional, Protocol

from lightllm_otel.contracts.fits import Fits
from lightllm_otel.contracts.patch_set import PatchSet
from lightllm_otel.guard import Guard
from lightllm_otel.otel_environment import OtelEnvironment
from lightllm_otel.records.control import Listener
from lightllm_otel.settings import Settings
from lightllm_otel.worker.forwards import Forwards
from lightllm_otel.worker.gpu.timer import Timer
from lightllm_otel.worker.host.fast_path import FastPath
from lightllm_otel.worker.host.instrumented_graphs import InstrumentedGraphs
from lightllm_otel.worker.host.step_notes import StepNotes


class Session(Protocol):
    """What hooks talk to: one per process.

    ``forwards`` is None until the model serves, ``timer`` also while live control says off. ``patch set`` holds what stays
    for the life of the process, ``live`` what live control can take away. ``notes``: None unless there are traces.
    ``sees_replays``: a hook sees each replay of a decode graph, or the model has none.
    """

    timer: Optional[Timer]
    forwards: Optional[Forwards]
    listener: Listener
    fast_path: FastPath
    instrumented_graphs: Optional[InstrumentedGraphs]
    guard: Guard
    patch_set: PatchSet
    live: PatchSet
    notes: Optional[StepNotes]
    fits: Fits
    otel_environment: OtelEnvironment
    sees_replays: bool
    group_class: Any

    @property
    def settings(self) -> Settings: ...

    def attach(self, model: Any) -> None:
        """The model's layers exist: wrap them, before they run for the first time."""

    def serve(self, model: Any) -> None:
        """The model is complete: from here on its forwards are requests."""

    def owns(self, model: Any) -> bool:
        """Tell whether steps of this model are measured (a draft model's are not)."""

    def listen(self) -> None:
        """A forward is entered: follow live control, if there is an order that begins with it."""

    def housekeep(self) -> None:
        """Called on the model thread after each step and on idle ticks; throttles itself."""
