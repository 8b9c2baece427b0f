"""A row of the table as one of Grafana's panels, by grafana-foundation-sdk's builders."""

from __future__ import annotations

import string
from typing import Any

from grafana_foundation_sdk.builders import bargauge, common, heatmap, stat, table, timeseries, xychart
from grafana_foundation_sdk.builders import dashboard as board
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models import common as models
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from grafana.table import BARS, HEATMAP, LINES, SCATTER, STACK, STAT, TABLE, Panel, Query

DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
TIMES = "suffix:×"  # of a ratio
# What a table's frames bring along and nobody reads.
NOISE = ("Time", "__name__", "job")


def panel(row: Panel, number: int) -> Any:
    """A builder. ``number``: its id, which links to it need to be stable."""
    made = MAKE[row.kind](row)
    made.id(number).title(row.title).description(row.text).datasource(DATASOURCE).unit(row.unit)
    made.height(row.height).span(row.width).no_value(row.empty)
    if row.kind != HEATMAP:
        made.thresholds(_thresholds(row))
    for at, query in enumerate(row.queries):
        made.with_target(_target(row, query, string.ascii_uppercase[at]))
    return made


def _target(row: Panel, query: Query, ref: str) -> Dataquery:
    target = Dataquery().expr(query.promql).legend_format(query.legend or "__auto").ref_id(ref).datasource(DATASOURCE)
    if row.kind in (TABLE, SCATTER):
        return target.format(PromQueryFormat.TABLE).instant()
    if row.kind in (STAT, BARS):
        return target.instant()
    if row.kind == HEATMAP:
        return target.format(PromQueryFormat.HEATMAP).range()
    return target.exemplar(True).range() if query.exemplars else target.range()


def _thresholds(row: Panel) -> board.ThresholdsConfig:
    base = "green" if row.steps else "text"
    steps = [Threshold(None, base), *(Threshold(value, colour) for value, colour in row.steps)]
    return board.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def _stat(row: Panel) -> stat.Panel:
    made = stat.Panel().graph_mode(models.BigValueGraphMode.NONE).color_mode(models.BigValueColorMode.VALUE)
    made.text_mode(models.BigValueTextMode.AUTO)
    return made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))


def _lines(row: Panel) -> timeseries.Panel:
    legend = common.VizLegendOptions().show_legend(True).display_mode(models.LegendDisplayMode.TABLE)
    legend.placement(models.LegendPlacement.RIGHT if row.width > 8 else models.LegendPlacement.BOTTOM)
    made = timeseries.Panel().legend(legend.calcs(["lastNotNull"]))
    made.tooltip(common.VizTooltipOptions().mode(models.TooltipDisplayMode.MULTI).sort(models.SortOrder.DESCENDING))
    if row.logarithmic:
        made.scale_distribution(common.ScaleDistributionConfig().type(models.ScaleDistribution.LOG).log(10))
    elif row.unit == TIMES:  # around 1, but noise of a thousandth shall not fill the panel
        made.axis_soft_min(0.9).axis_soft_max(1.1)
    else:
        made.axis_soft_min(0)
        if row.unit == "cps":  # mostly errors: 0 shall not look like something of a hundred
            made.axis_soft_max(1)
    if row.highest is not None:
        made.max(row.highest)
    return made.line_width(1).show_points(models.VisibilityMode.AUTO).span_nulls(False)


def _stack(row: Panel) -> timeseries.Panel:
    made = _lines(row).stacking(common.StackingConfig().mode(models.StackingMode.NORMAL).group("A"))
    return made.fill_opacity(60).line_width(0).min(0)


def _bars(row: Panel) -> bargauge.Panel:
    made = bargauge.Panel().display_mode(models.BarGaugeDisplayMode.BASIC).min(0)
    made.orientation(models.VizOrientation.HORIZONTAL).value_mode(models.BarGaugeValueMode.TEXT)
    if row.highest is not None:
        made.max(row.highest)
    if not row.steps:
        made.color_scheme(board.FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
    return made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))


def _heatmap(row: Panel) -> heatmap.Panel:
    colour = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues").steps(64)
    made = heatmap.Panel().calculate(False).color(colour).cell_gap(1)
    return made.y_axis(heatmap.YAxisConfig().unit(row.unit)).filter_values(heatmap.FilterValueRange().le(1e-9))


def _table(row: Panel) -> table.Panel:
    """One line per set of labels; the value of each query is a column of its legend's name."""
    names = _columns(row)
    names["Value"] = row.queries[0].legend
    made = table.Panel().min_width(90)
    made.override_by_regexp(
        ".*", [DynamicConfigValue(id_val="noValue", value="–")]
    )  # one cell; else it is the whole table's
    if len(row.queries) > 1:
        made.with_transformation(DataTransformerConfig(id_val="merge", options={}))
    hidden = dict.fromkeys(NOISE, True)
    if row.queries[0].legend == "known":  # an info: its labels are what is to be seen
        hidden["Value"] = True
    organize = {"excludeByName": hidden, "renameByName": names, "indexByName": {}}
    made.with_transformation(DataTransformerConfig(id_val="organize", options=organize))
    for column, unit in row.units:
        made.override_by_name(column, [DynamicConfigValue(id_val="unit", value=unit)])
    if row.sort:
        made.sort_by([common.TableSortByFieldState().display_name(row.sort).desc(True)])
    return made.override_by_name("instance", [DynamicConfigValue(id_val="links", value=[_to_overview()])])


def _columns(row: Panel) -> dict[str, str]:
    return {f"Value #{string.ascii_uppercase[at]}": query.legend for at, query in enumerate(row.queries)}


class _Scatter(xychart.Panel):
    """With the options of Grafana 10, which 11.1 and later turn into their own; they know them by the missing version."""

    def __init__(self, across: str, series: list[str]) -> None:
        super().__init__()
        self._across, self._series = across, series

    def build(self) -> Any:
        made = super().build()
        *points, roof = self._series
        looks = [(name, colour, 10) for name, colour in zip(points, ("blue", "orange"))] + [(roof, "text", 4)]
        made.options = {
            "seriesMapping": "manual", "dims": {},
            "series": [
                {"frame": 0, "x": self._across, "y": name, "pointColor": {"fixed": colour}, "pointSize": {"fixed": size}}
                for name, colour, size in looks
            ],
            "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []},
            "tooltip": {"mode": "single", "sort": "none"},
        }  # fmt: skip
        return made


def _scatter(row: Panel) -> xychart.Panel:
    across, *series = [query.legend for query in row.queries]
    made = _Scatter(across, series)
    made.scale_distribution(common.ScaleDistributionConfig().type(models.ScaleDistribution.LOG).log(10))
    made.with_transformation(DataTransformerConfig(id_val="merge", options={}))
    organize = {"excludeByName": dict.fromkeys(NOISE, True), "renameByName": _columns(row), "indexByName": {}}
    made.with_transformation(DataTransformerConfig(id_val="organize", options=organize))
    for column, unit in row.units:
        made.override_by_name(column, [DynamicConfigValue(id_val="unit", value=unit)])
    return made


def _to_overview() -> dict[str, Any]:
    url = "/d/lightllm-otel-overview?${datasource:queryparam}&${job:queryparam}&${__url_time_range}"
    return {"title": "Overview of this server", "url": url + "&var-instance=${__value.raw}"}


MAKE = {STAT: _stat, LINES: _lines, STACK: _stack, BARS: _bars, HEATMAP: _heatmap, TABLE: _table,
        SCATTER: _scatter}  # fmt: skip
