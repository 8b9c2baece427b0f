"""Boundaries: each one ends an interval and says to which operator that interval belongs, as a small integer."""

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


DIRECTLY = -1  # no work lies between two operators
_BYTES_BITS = 48  # bits of a payload; the bits above are the code of the implementation


def pack(payload: int, how: Implementation) -> int:
    """Return the bytes and the implementation of a collective as one number, which a recorder keeps."""
    return payload | how.code << _BYTES_BITS


def unpack(packed: int) -> tuple[int, int]:
    """Return ``(bytes, code of the implementation)`` of a packed payload."""
    return packed & (1 << _BYTES_BITS) - 1, packed >> _BYTES_BITS


@dataclasses.dataclass(frozen=True)
class Boundary:
    """End of an interval of ``operator``. ``layer``: -1 outside of all layers.

    ``part``: the interval is a piece of the operator, which continues after what is nested in it.
    """

    operator: Operator
    layer: int = -1
    site: Site = Site.NONE
    part: bool = False


@dataclasses.dataclass(frozen=True)
class Shape:
    """Record layout of a step that passed a certain sequence of boundaries.

    ``template``: ``INTERVAL`` records, shape (rows,). ``row``: for each interval the row it adds to, int, shape (boundaries,).
    """

    row: np.ndarray
    template: np.ndarray


class BoundaryCodes:
    """Codes of boundaries, and the :class:`Shape` of each sequence of codes, which is cached because steps repeat.

    ``reaches``: for each code the progress word of a host that has passed it (:func:`lightllm_otel.records.progress.place`).
    ``approach``: for a boundary before a possible collective, the code of the work between them, or DIRECTLY.
    ``residuals``: the codes of residual adds.
    """

    _KEPT = 64

    def __init__(self) -> None:
        self._codes: dict[Boundary, int] = {}
        self._boundary_codes: list[Boundary] = []
        self.reaches: list[int] = []
        self.approach: dict[int, int] = {}
        self.residuals: set[int] = set()
        self._collectives: dict[tuple[Operator, int], int] = {}
        self._sites: dict[int, Site] = {}
        self._shapes: dict[tuple[int, ...], Shape] = {}

    def code(self, boundary: Boundary) -> int:
        """Return the code of a boundary; a new boundary gets the next free one."""
        if boundary not in self._codes:
            self._codes[boundary] = len(self._boundary_codes)
            self._boundary_codes.append(boundary)
            self.reaches.append(place(boundary.operator, boundary.layer))
            if boundary.operator is Operator.RESIDUAL:
                self.residuals.add(self._codes[boundary])
        return self._codes[boundary]

    def boundary(self, code: int) -> Boundary:
        """Return the boundary with this code."""
        return self._boundary_codes[code]

    def name(self, code: int) -> str:
        """Return the name of the operator of the boundary with this code."""
        return self._boundary_codes[code].operator.value

    def part(self, code: int) -> int:
        """Return the code for a piece of the same operator."""
        return self.code(dataclasses.replace(self._boundary_codes[code], part=True))

    def locate(self, code: int, site: Site) -> None:
        """Set the site of collectives inside the operator with this code, where its name does not tell the site."""
        self._sites[code] = self._sites[self.part(code)] = site

    def before_collective(self, last: int) -> int:
        """Return the code of the work between boundary ``last`` and a collective outside of all operators, or DIRECTLY.

        Unknown work is ``other``. After a gap, for instance when a step begins, the gap continues.
        """
        if last not in self.approach:
            boundary = self._boundary_codes[last]
            unclaimed = Boundary(Operator.OTHER, max(boundary.layer, -1))
            self.approach[last] = last if boundary.operator is Operator.GAP else self.code(unclaimed)
        return self.approach[last]

    def collective(self, operator: Operator, context: int) -> int:
        """Return the code of a collective that is called inside, or right after, the operator with the code ``context``."""
        key = (operator, context)
        if key not in self._collectives:
            around = self._boundary_codes[context]
            site = around.site if around.site is not Site.NONE else _SITES.get(around.operator, Site.NONE)
            site = self._sites.get(context, site)
            self._collectives[key] = self.code(Boundary(operator, around.layer, site))
        return self._collectives[key]

    def shape(self, codes: Sequence[int]) -> Shape:
        """Return the record layout of a step with these boundaries."""
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
                row[at] = gap  # all gaps of a step are one record
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
            if not same:  # the step ended inside an operator
                rows.append((whole, seen.get((whole.operator, whole.layer), 0)))
        template = np.zeros(len(rows), layout.INTERVAL)
        template["operator"] = [boundary.operator.code for boundary, _ in rows]
        template["site"] = [boundary.site.code for boundary, _ in rows]
        template["layer"] = [boundary.layer for boundary, _ in rows]
        template["occurrence"] = [occurrence for _, occurrence in rows]
        return Shape(row, template)
