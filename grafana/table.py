"""What a dashboard is made of, as rows: boards, rows of panels, queries. Nothing here knows Grafana's JSON."""

from __future__ import annotations

import dataclasses

# In expressions: who is meant. Every query of ours is limited to the servers that the variables choose.
TOKENS = {
    "$SERVER": 'job=~"$job",instance=~"$instance"',
    "$RANKS": 'job=~"$job",instance=~"$instance",rank=~"$rank"',
    "$PHASES": 'job=~"$job",instance=~"$instance",phase=~"$phase"',
    "$OTHER": 'job=~"$job",instance=~"$other",phase=~"$phase"',
    "$OWN": 'instance=~"$lightllm"',  # LightLLM's own /metrics has another port, so another instance
    "[RATE]": "[$__rate_interval]",
}

# What identifies a target. Queries aggregate to it before they join on it, as rules do: a second series at one address would fail
# the whole query, and hosts are called alike in two clusters. Cluster and namespace are empty where nobody sets them.
TARGET = "cluster, namespace, job, instance"

# How a panel looks.
STAT, LINES, STACK, BARS, HEATMAP, TABLE = "stat", "lines", "stack", "bars", "heatmap", "table"
SCATTER = "scatter"  # the first query is x, each further one a series of points; both axes are logarithmic


@dataclasses.dataclass(frozen=True)
class Query:
    """``legend``: of each series, with ``{{label}}``; in a table: the name of its column."""

    expr: str
    legend: str = ""
    exemplars: bool = False

    @property
    def promql(self) -> str:
        text = self.expr
        for token, meaning in TOKENS.items():
            text = text.replace(token, meaning)
        return text


@dataclasses.dataclass(frozen=True)
class Panel:
    """``text``: how to read it, naming its metric. ``empty``: what a person sees when there is nothing, and why.

    ``steps``: (value, colour) at which the colour changes. ``units``: of a table's columns, by name; ``hide`` of them.
    """

    title: str
    kind: str
    unit: str
    text: str
    queries: tuple[Query, ...]
    width: int = 12
    height: int = 8
    empty: str = "No steps in this time range"
    steps: tuple[tuple[float, str], ...] = ()
    units: tuple[tuple[str, str], ...] = ()
    highest: float | None = None
    logarithmic: bool = False
    sort: str = ""


@dataclasses.dataclass(frozen=True)
class Variable:
    """``query``: of Prometheus' label values; or ``choices``, fixed ones.

    ``listed``: All means all that were found, instead of anything: what another variable left out stays out.
    """

    name: str
    label: str
    query: str = ""
    choices: tuple[str, ...] = ()
    multi: bool = True
    text: str = ""
    listed: bool = False


@dataclasses.dataclass(frozen=True)
class Board:
    uid: str
    title: str
    text: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]
    more: tuple[Variable, ...] = ()

    @property
    def panels(self) -> list[Panel]:
        return [panel for _, panels in self.rows for panel in panels]


INFO = 'lightllm_server_info{job=~"$job",model=~"$model"}'
VARIABLES = (
    Variable("job", "Job", "label_values(lightllm_server_info, job)", text="Prometheus' scrape job"),
    Variable("model", "Model", 'label_values(lightllm_server_info{job=~"$job"}, model)', text="limits the instances"),
    Variable("instance", "Instance", f"label_values({INFO}, instance)", text="the exporter of one server", listed=True),
    Variable(
        "rank", "Rank", 'label_values(lightllm_gpu_step_in_flight_seconds{job=~"$job",instance=~"$instance"}, rank)',
        text="a GPU of a server; where a metric has ranks",
    ),
)  # fmt: skip
PHASE = Variable(
    "phase", "Phase",
    'label_values(lightllm_gpu_step_duration_seconds_count{job=~"$job",instance=~"$instance"}, phase)',
)  # fmt: skip
