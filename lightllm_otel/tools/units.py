"""Numbers as text, with three significant digits and a unit."""

from __future__ import annotations

import math


def duration(seconds: float) -> str:
    """Return seconds as text: ``4.5 µs``; a dash for NaN."""
    if math.isnan(seconds):
        return "–"
    for factor, unit in ((1e6, "µs"), (1e3, "ms"), (1.0, "s")):
        if seconds * factor < 1000 or unit == "s":
            return f"{seconds * factor:.3g} {unit}"
    return "–"


def rate(value: float | None, unit: str) -> str:
    """Return a rate as text: ``594 TFLOP/s``, ``1.16 TB/s``; a dash for None."""
    if value is None:
        return "–"
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}/s"
    return f"{value:.3g} {unit}/s"


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share (0 to 1) in percent as text; a dash for None."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def signed(change: float | None) -> str:
    """Return a relative change in percent as text, with its sign; a dash for None."""
    return "–" if change is None else f"{100 * change:+.1f} %"


def interval(bounds: tuple[float, float] | list[float] | None) -> str:
    """Return an interval of relative changes in percent as text; a dash for None."""
    return "–" if bounds is None else f"{100 * bounds[0]:+.1f} … {100 * bounds[1]:+.1f} %"


def amount(number: float) -> str:
    """Return bytes as text, with powers of 1000: ``594 MB``."""
    for factor, unit in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number:.0f} B"
