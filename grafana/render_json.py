"""A board as the JSON that Grafana reads."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    Dashboard,
    DashboardCursorSync,
    DashboardLinkType,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from grafana import panels
from grafana.table import VARIABLES, Board, Variable

TAG = "lightllm-otel"


def text(board: Board) -> str:
    encoded: str = JSONEncoder(sort_keys=True, indent=1).encode(dashboard(board))
    return encoded + "\n"


def dashboard(board: Board) -> Dashboard:
    made = builders.Dashboard(f"LightLLM / {board.title}").uid(board.uid).description(board.text).tags([TAG]).readonly()
    made.refresh("30s").time("now-1h", "now").timezone("browser").tooltip(DashboardCursorSync.CROSSHAIR)
    made.with_variable(builders.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    for variable in (*VARIABLES, *board.more):
        made.with_variable(_variable(variable))
    link = builders.DashboardLink("LightLLM dashboards").type(DashboardLinkType.DASHBOARDS).tags([TAG])
    made.link(link.keep_time(True).include_vars(True).as_dropdown(False))
    number = 0
    for title, row in board.rows:
        number += 1
        made.with_row(builders.Row(title).id(number))
        for panel in row:
            number += 1
            made.with_panel(panels.panel(panel, number))
    built = made.build()
    for each in built.links or []:
        each.placement = None  # the builder's default is a menu of newer Grafanas; without it they stand in the bar
    return built


def _variable(variable: Variable) -> builders.QueryVariable | builders.CustomVariable:
    if variable.choices:
        first = variable.choices[0]
        fixed = builders.CustomVariable(variable.name).label(variable.label).values(",".join(variable.choices))
        fixed.current(VariableOption(selected=True, text=first, value=first))
        fixed.options([VariableOption(selected=each == first, text=each, value=each) for each in variable.choices])
        return fixed.description(variable.text)
    made = builders.QueryVariable(variable.name).label(variable.label).query(variable.query)
    made.datasource(panels.DATASOURCE).refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    made.sort(VariableSort.NATURAL_ASC).multi(variable.multi).include_all(variable.multi).description(variable.text)
    if variable.multi:
        made.current(VariableOption(selected=True, text=["All"], value=["$__all"]))
        if not variable.listed:
            made.all_value(".+")
    return made
