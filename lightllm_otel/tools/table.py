"""Text tables with aligned columns, in which a Chinese character is two columns wide."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Sequence

LEFT, RIGHT = "<", ">"
_WIDE = ("W", "F")  # East Asian Width: wide and fullwidth
_NO_WIDTH = ("Mn", "Me", "Cf")  # Unicode categories: combining marks and format characters


def width(text: str) -> int:
    """Return the number of terminal columns of ``text``."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.category(each) in _NO_WIDTH else 1 + (unicodedata.east_asian_width(each) in _WIDE)
        for each in text
    )


def table(rows: Iterable[Sequence[str]], align: str, least: Sequence[int] = (), gap: int = 2) -> list[str]:
    """Return a line for each row.

    ``align``: ``<`` or ``>`` for each column. ``least``: smallest width of each column. ``gap``: spaces between columns. A
    row can have fewer cells than there are columns. The last cell of a row does not widen a left-aligned column.
    """
    filled = [list(row) for row in rows]
    widths = list(itertools.islice(itertools.chain(least, itertools.repeat(0)), len(align)))
    for row in filled:
        for at, cell in enumerate(row):
            if at < len(row) - 1 or align[at] == RIGHT:
                widths[at] = max(widths[at], width(cell))
    return [
        (" " * gap).join(_padded(cell, widths[at], align[at]) for at, cell in enumerate(row)).rstrip() for row in filled
    ]


def _padded(cell: str, columns: int, align: str) -> str:
    blank = " " * (columns - width(cell))
    return blank + cell if align == RIGHT else cell + blank
