"""Memory of this process, from ``/proc``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

COMPILER = "ptxjitcompiler"


def memory() -> dict[str, int]:
    """KiB of this process; ``shared`` has the pages of the ring that were touched."""
    fields = {"RssAnon": "anonymous", "RssShmem": "shared", "VmRSS": "resident"}
    found = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in fields:
            found[fields[name]] = int(value.split()[0])
    return found


@dataclasses.dataclass(frozen=True)
class Grown:
    """MiB of this process. ``compiler``: what is mapped of the driver's own compiler of PTX, which it loads where its cache
    (``~/.nv``) does not have the kernel yet.
    """

    resident: float = 0.0
    anonymous: float = 0.0
    compiler: float = 0.0

    @classmethod
    def now(cls) -> Grown:
        found = memory()
        return cls(found["resident"] / 1024, found["anonymous"] / 1024, resident_of(COMPILER) / 1024)

    def __add__(self, other: Grown) -> Grown:
        return Grown(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other))))

    def __sub__(self, other: Grown) -> Grown:
        return Grown(*(a - b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other))))


def resident_of(library: str) -> int:
    """KiB of a library's file in this process' memory."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if not first.endswith(":"):  # a mapping begins
            ours = library in rest
        elif ours and first == "Rss:":
            total += int(rest.split()[0])
    return total
