"""Start of steps on the GPU by the host's wall clock, and how far it may be wrong.

A GPU has no wall clock, and asking one takes a synchronisation. But a GPU that had nothing to do passes a step's first event
as soon as it is recorded, and the host looked at its clock right then: such a step ties both clocks together anew, so their
drift never adds up. A step that was launched while the GPU was still busy, with its predecessor or with somebody else's kernels,
follows its predecessor by what the GPU's own events say lay between the two.
"""

from __future__ import annotations

import dataclasses
from typing import Any

WAITED_SECONDS = 20e-6  # a step that was launched behind a running one follows it within some microseconds
# Nobody keeps a GPU busy for so long between two steps; the host's clock may have been set, though.
BEHIND_SECONDS = 0.25
SLEW = 1e-3  # seconds per second, by which a host's clock may be slowed down to set it right
DRIFT = 50e-6  # seconds per second, between the clocks of a host and a GPU; quartz is good for less


@dataclasses.dataclass(frozen=True)
class Start:
    """Start of a step: Unix seconds, and how far they may be wrong, in seconds."""

    seconds: float
    error: float


class WallClock:
    """Wall clock of one rank's GPU. ``latency``: seconds, calibrated at its start; the larger, the coarser."""

    def __init__(self, latency: float = 0.0) -> None:
        self.latency = latency
        self._last: tuple[Start, Any] | None = None

    def start(self, step: Any) -> Start:
        """Return the start of ``step``, the next record (``STEP``) of the rank in the order in which they were written."""
        found = self._behind(step) or Start(float(step["wall_time"]), self.latency)
        self._last = (found, step)
        return found

    def _behind(self, step: Any) -> Start | None:
        """Return the end of the step before if the GPU was still busy when this one was launched, else None."""
        entered, idle = float(step["wall_time"]), float(step["idle_seconds"])
        if self._last is None or idle > BEHIND_SECONDS:
            return None
        before, last = self._last
        if int(step["number"]) != int(last["number"]) + 1 or entered < float(last["wall_time"]):
            return None
        passed = float(last["seconds"]) + idle
        follows, error = before.seconds + passed, before.error + DRIFT * passed
        # It cannot have begun before it was launched; where it seems to, launching is the better witness. Beyond both errors
        # the GPU was busy with what is no step of ours.
        busy = entered if idle <= WAITED_SECONDS else entered + error + self.latency + SLEW * passed
        return Start(follows, error) if follows > busy else None
