"""Marks: what the interval that a boundary closes belongs to, as one small integer on the hot path."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lightllm_otel.records import layout
from lightllm_otel.records.progress import place
from lightllm_otel.records.vocabulary import Implementation, Operator, Site

_SITES = {
    Operator.EMBEDDING: Site.EMBEDDING,
    Operator.LM_HEAD: Site.LM_HEAD,
    Operator.FFN: Site.FFN,
    Operator.FFN_NORM: Site.FFN,
    Operator.QKV_PROJ: Site.ATTENTION,
    Operator.ATTN_NORM: Site.ATTENTION,
    Operator.ATTENTION: Site.ATTENTION,
    Operator.O_PROJ: Site.ATTENTION,
}


DIRECTLY = -1  # there is nothing between
_BYTES_BITS = 48  # of a payload; what lies above is how it was moved


def pack(payload: int, how: Implementation) -> int:
    """Bytes of a collective and its implementation as the one number that a marking keeps."""
    return payload | how.code << _BYTES_BITS


def unpack(packed: int) -> tuple[int, int]:
    """``(bytes, code of the implementation)``."""
    return packed & (1 << _BYTES_BITS) - 1, packed >> _BYTES_BITS


@dataclasses.dataclass(frozen=True)
class Boundary:
    """``part``: only a piece of the operator, which goes on after what is nested in it."""

    operator: Operator
    layer: int = -1
    site: Site = Site.NONE
    part: bool = False


@dataclasses.dataclass(frozen=True)
class Shape:
    """The intervals of a step that passed a certain sequence of boundaries.

    ``row``: for each interval (shape (marks,)) the row of ``template`` (``INTERVAL``, shape (rows,)) it adds to.
    """

    row: np.ndarray
    template: np.ndarray


class BoundaryCodes:
    """Gives each boundary its code, and each sequence of codes its :class:`Shape` (kept: steps repeat themselves)."""

    _KEPT = 64

    def __init__(self) -> None:
        self._codes: dict[Boundary, int] = {}
        self._boundary_codes: list[Boundary] = []
        self.reaches: list[int] = []
        """Of each code: where a host is that has taken this mark (:func:`lightllm_otel.records.progress.place`)."""
        self.approach: dict[int, int] = {}
        """Of a boundary behind which a collective may come: the boundary of the work between them, or DIRECTLY."""
        self.residuals: set[int] = set()
        """The codes of adds."""
        self._collectives: dict[tuple[Operator, int], int] = {}
        self._sites: dict[int, Site] = {}
        self._shapes: dict[tuple[int, ...], Shape] = {}

    def code(self, boundary: Boundary) -> int:
        if boundary not in self._codes:
            self._codes[boundary] = len(self._boundary_codes)
            self._boundary_codes.append(boundary)
            self.reaches.append(place(boundary.operator, boundary.layer))
            if boundary.operator is Operator.RESIDUAL:
                self.residuals.add(self._codes[boundary])
        return self._codes[boundary]

    def boundary(self, code: int) -> Boundary:
        """The mark that this code stands for."""
        return self._boundary_codes[code]

    def name(self, code: int) -> str:
        """Of the operator that the boundary with this code stands for."""
        return self._boundary_codes[code].operator.value

    def part(self, code: int) -> int:
        """The code of a piece of that operator."""
        return self.code(dataclasses.replace(self._boundary_codes[code], part=True))

    def locate(self, code: int, site: Site) -> None:
        """Collectives inside the operator with this code are at ``site``, which its name does not say."""
        self._sites[code] = self._sites[self.part(code)] = site

    def before_collective(self, last: int) -> int:
        """The mark of what lies between the boundary ``last`` and a collective outside of every operator, or DIRECTLY.

        Work that nothing is known of is ``other``; behind a gap, as when a step begins, the gap goes on.
        """
        if last not in self.approach:
            boundary = self._boundary_codes[last]
            nobodys = Boundary(Operator.OTHER, max(boundary.layer, -1))
            self.approach[last] = last if boundary.operator is Operator.GAP else self.code(nobodys)
        return self.approach[last]

    def collective(self, operator: Operator, context: int) -> int:
        """A collective called inside, or right after, the operator with the code ``context``."""
        key = (operator, context)
        if key not in self._collectives:
            around = self._boundary_codes[context]
            site = around.site if around.site is not Site.NONE else _SITES.get(around.operator, Site.NONE)
            site = self._sites.get(context, site)
            self._collectives[key] = self.code(Boundary(operator, around.layer, site))
        return self._collectives[key]

    def shape(self, codes: Sequence[int]) -> Shape:
        key = tuple(codes)
        shape = self._shapes.get(key)
        if shape is None:
            if len(self._shapes) >= self._KEPT:
                self._shapes.clear()
            shape = self._shapes[key] = self._build(key)
        return shape

    def _build(self, codes: tuple[int, ...]) -> Shape:
        rows: list[tuple[Boundary, int]] = []
        row = np.empty(len(codes), np.intp)
        unfinished: dict[Boundary, list[int]] = {}
        seen: dict[tuple[Operator, int], int] = {}
        gap = -1
        for at, code in enumerate(codes):
            boundary = self._boundary_codes[code]
            whole = dataclasses.replace(boundary, part=False)
            if boundary.part:
                unfinished.setdefault(whole, []).append(at)
                continue
            if boundary.operator is Operator.GAP and gap >= 0:
                row[at] = gap  # all that is left of a step is one observation
                continue
            if boundary.operator is Operator.GAP:
                gap = len(rows)
            key = (boundary.operator, boundary.layer)
            row[[at, *unfinished.pop(whole, [])]] = len(rows)
            rows.append((boundary, seen.get(key, 0)))
            seen[key] = seen.get(key, 0) + 1
        for whole, pieces in unfinished.items():
            same = [at for at, (boundary, _) in enumerate(rows) if boundary == whole]
            row[pieces] = same[-1] if same else len(rows)
            if not same:  # a step that ended inside an operator
                rows.append((whole, seen.get((whole.operator, whole.layer), 0)))
        template = np.zeros(len(rows), layout.INTERVAL)
        template["operator"] = [boundary.operator.code for boundary, _ in rows]
        template["site"] = [boundary.site.code for boundary, _ in rows]
        template["layer"] = [boundary.layer for boundary, _ in rows]
        template["occurrence"] = [occurrence for _, occurrence in rows]
        return Shape(row, template)
