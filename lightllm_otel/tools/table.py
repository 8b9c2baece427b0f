"""Text tables: columns never touch, numbers stand to the right, and a Chinese character takes two columns."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Sequence

LEFT, RIGHT = "<", ">"
_WIDE = ("W", "F")  # of East Asian Width: wide and fullwidth
_NO_WIDTH = ("Mn", "Me", "Cf")  # of Unicode's categories: marks on the character before, and format characters


def width(text: str) -> int:
    """Return the columns that a terminal needs for ``text``."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.category(each) in _NO_WIDTH else 1 + (unicodedata.east_asian_width(each) in _WIDE)
        for each in text
    )


def table(rows: Iterable[Sequence[str]], align: str, least: Sequence[int] = (), gap: int = 2) -> list[str]:
    """Return a line for each row. ``align``: ``<`` or ``>`` for each column. ``least``: widths, which longer cells widen.

    A row may have fewer cells than there are columns. A row's last cell may be of any length if its column is to the left:
    it widens nothing.
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
