"""Table of operators by phase, from one or two scrapes of ``/metrics``."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict

from lightllm_otel.tools.scrape import Scrape
from lightllm_otel.tools.table import table as text_table
from lightllm_otel.tools.units import duration

DURATION = "lightllm_gpu_operator_duration_seconds"


@dataclasses.dataclass
class OperatorCalls:
    """Calls of one operator in one phase and mode.

    ``count``: calls. ``seconds``: their total. ``buckets``: cumulative count of calls by upper bound in seconds.
    """

    count: float = 0.0
    seconds: float = 0.0
    buckets: dict[float, float] = dataclasses.field(default_factory=dict)

    def quantile(self, share: float) -> float:
        """Return a quantile in seconds; NaN without calls. Like Prometheus' histogram_quantile, interpolate within a bucket.

        ``share``: 0 to 1.
        """
        below, floor = 0.0, 0.0
        wanted = share * self.count
        for bound, count in sorted(self.buckets.items()):
            if count >= wanted and count > below:
                if math.isinf(bound):
                    return floor
                return floor + (bound - floor) * (wanted - below) / (count - below)
            below, floor = count, bound
        return math.nan


OperatorTable = dict[tuple[str, str], dict[str, OperatorCalls]]
"""Calls by (phase, mode), then by operator."""


def rows(now: Scrape, before: Scrape | None = None) -> OperatorTable:
    """Return the calls between two scrapes, or since the start of the exporter."""
    table: OperatorTable = defaultdict(lambda: defaultdict(OperatorCalls))
    for part, field in (("_count", "count"), ("_sum", "seconds"), ("_bucket", "le")):
        earlier = before.samples.get(DURATION + part, {}) if before is not None else {}
        for labels, value in now.samples.get(DURATION + part, {}).items():
            named = dict(labels)
            row = table[named["phase"], named["mode"]][named["operator"]]
            gained = value - earlier.get(labels, 0.0)
            if field == "le":
                row.buckets[float(named["le"])] = gained
            else:
                setattr(row, field, gained)
    return table


def render(table: OperatorTable, seconds: float | None = None) -> str:
    """Return a text table per phase and mode, longest operator first. ``seconds``: time between the scrapes, for rates."""
    lines: list[str] = []
    order = {"prefill": 0, "decode": 1}
    for (phase, mode), operators in sorted(table.items(), key=lambda item: order.get(item[0][0], 2)):
        whole = sum(row.seconds for row in operators.values())
        if not whole:
            continue
        cells = [[f"{phase} · {mode}", "share", "calls/s" if seconds else "calls", "mean", "p50", "p99"]]
        for operator, row in sorted(operators.items(), key=lambda item: -item[1].seconds):
            if row.count:
                calls = row.count / seconds if seconds else row.count
                times = (row.seconds / row.count, row.quantile(0.5), row.quantile(0.99))
                share = f"{100 * row.seconds / whole:.1f}%"
                cells.append([f"  {operator}", share, f"{calls:.5g}", *map(duration, times)])
        lines += [*text_table(cells, "<>>>>>", (18, 6, 8, 9, 9, 9)), ""]
    return "\n".join(lines)
