"""Session of a model process, as the hooks in LightLLM's modules see it."""

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
    """One session per process. ``forwards`` is None until the model serves; ``timer`` also while live control says off.

    ``patch_set`` holds the hooks that stay for the life of the process, ``live`` those that live control can remove.
    ``notes``: None unless requests are traced. ``sees_replays``: a hook sees each replay of a decode graph, or the model has
    no decode graphs.
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
    def settings(self) -> Settings:
        """Return the settings of this process."""

    def attach(self, model: Any) -> None:
        """Wrap the model's layers, which exist and have not run yet."""

    def serve(self, model: Any) -> None:
        """Start measuring the model, which is complete: from here on its forwards serve requests."""

    def owns(self, model: Any) -> bool:
        """Tell whether this model is measured. Draft models are not."""

    def listen(self) -> None:
        """Follow live control if an order begins with the forward that is being entered."""

    def housekeep(self) -> None:
        """Do the housekeeping, at most once a second. Called on the model thread after each step and on idle ticks."""
