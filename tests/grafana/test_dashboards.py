"""The dashboards are what their source says, and what a person needs; rules as of Grafana's dashboard-linter."""

import re
import sys
import warnings

import pytest
from dashboards import ALL, FOLDER, PATHS, ROOT, load, panels

DASHBOARDS = [load(path) for path in PATHS]
UNITS = {"short", "s", "Bps", "percentunit", "cps", "hertz", "celsius", "watt", "flops"}  # of Grafana's own ids
each_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard["uid"])
each_panel = pytest.mark.parametrize(
    "panel", [panel for dashboard in DASHBOARDS for panel in panels(dashboard)], ids=lambda panel: panel["title"]
)
each_target = pytest.mark.parametrize("target", ALL, ids=str)


@pytest.fixture
def boards(monkeypatch):
    if sys.version_info < (3, 11):
        pytest.skip("grafana-foundation-sdk needs Python 3.11")
    pytest.importorskip("grafana_foundation_sdk")
    monkeypatch.syspath_prepend(str(ROOT))
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # it prefers its second schema, which Grafana 10 cannot read
        from grafana import render_json
        from grafana.boards import BOARDS

    return {board.uid: render_json.text(board) for board in BOARDS}


def test_the_committed_json_is_what_the_source_says(boards):
    """Else run: python grafana/build.py"""
    assert {path.stem for path in FOLDER.glob("*.json")} == set(boards)
    assert [uid for uid, text in boards.items() if (FOLDER / f"{uid}.json").read_text() != text] == []


def test_grafanas_own_types_read_them_and_write_the_same(boards):
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    for path in PATHS:
        read = Dashboard.from_json(load(path))
        for link in read.links or []:
            link.placement = None  # where there is none, it reads a default that it would not write
        again = JSONEncoder(sort_keys=True, indent=1).encode(read)
        assert again + "\n" == path.read_text()


def test_there_is_one_for_each_question():
    names = {dashboard["uid"].removeprefix("lightllm-otel-") for dashboard in DASHBOARDS}
    assert names == {"fleet", "overview", "operators", "communication", "roofline", "compare", "plugin"}


@each_dashboard
class TestDashboard:
    def test_it_says_what_it_is_for_and_cannot_be_edited_by_accident(self, dashboard):
        assert dashboard["title"].startswith("LightLLM / ")
        assert len(dashboard["description"]) > 40
        assert dashboard["editable"] is False

    def test_it_has_the_variables_each_reloaded_when_the_time_changes(self, dashboard):
        found = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
        assert list(found)[:5] == ["datasource", "job", "model", "instance", "rank"]
        assert found["datasource"]["type"] == "datasource"
        assert found["datasource"]["query"] == "prometheus"
        for name, variable in found.items():
            if variable["type"] == "query":
                assert variable["refresh"] == 2, name
                assert variable["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
                assert variable["multi"], name
                # Else the model, which limits the instances, would mean nothing where all of them are chosen.
                assert variable.get("allValue") == (None if name == "instance" else ".+"), name
            assert variable["label"], name

    def test_it_leads_to_the_others_with_time_and_variables(self, dashboard):
        (link,) = dashboard["links"]
        assert (link["type"], link["tags"]) == ("dashboards", dashboard["tags"])
        assert link["keepTime"]
        assert link["includeVars"]
        assert not link["asDropdown"]
        assert "placement" not in link

    def test_panels_have_ids_of_their_own_and_do_not_overlap(self, dashboard):
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert len(set(ids)) == len(ids)
        taken = set()
        for panel in dashboard["panels"]:
            at = panel["gridPos"]
            assert at["x"] + at["w"] <= 24
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert not taken & cells, panel["title"]
            taken |= cells

    def test_titles_of_panels_are_different(self, dashboard):
        titles = [panel["title"] for panel in panels(dashboard)]
        assert len(set(titles)) == len(titles)


def test_the_roofline_has_the_form_of_grafana_10_which_later_ones_migrate():
    """By a missing version they know that it is to be migrated (xychart/migrations.ts); their own form 10 cannot read."""
    (panel,) = [panel for dashboard in DASHBOARDS for panel in panels(dashboard) if panel["type"] == "xychart"]
    assert "pluginVersion" not in panel
    assert panel["options"]["seriesMapping"] == "manual"
    assert "mapping" not in panel["options"]
    merge, organize = panel["transformations"]
    assert (merge["id"], organize["id"]) == ("merge", "organize")
    columns = set(organize["options"]["renameByName"].values())
    series = panel["options"]["series"]
    assert {each["x"] for each in series} == {"operations per byte"}
    assert {"operations per byte", *(each["y"] for each in series)} == columns
    assert {each["frame"] for each in series} == {0}, "without it the second series would look for a second frame"
    # Both axes: 10 takes them from the fields' own configuration.
    assert panel["fieldConfig"]["defaults"]["custom"]["scaleDistribution"] == {"type": "log", "log": 10}


@each_panel
class TestPanel:
    def test_it_has_a_title_and_says_how_to_read_it_naming_its_metric(self, panel):
        assert panel["title"]
        text = panel["description"]
        assert len(text) > 20
        assert text.endswith(".")
        names = set(re.findall(r"\b(?:lightllm_|DCGM_|up\b|scrape_)\w*", text))
        shown = " ".join(target["expr"] for target in panel["targets"])
        assert names, "names no metric"
        assert any(name in shown for name in names)

    def test_every_metric_that_its_text_names_is_in_its_queries(self, panel):
        shown = " ".join(target["expr"] for target in panel["targets"])
        assert [
            name for name in re.findall(r"\b(?:lightllm|DCGM)_\w+", panel["description"]) if name not in shown
        ] == []

    def test_it_has_a_unit_that_grafana_knows_and_a_word_for_nothing(self, panel):
        defaults = panel["fieldConfig"]["defaults"]
        units = [defaults["unit"]]
        units += [p["value"] for o in panel["fieldConfig"]["overrides"] for p in o["properties"] if p["id"] == "unit"]
        assert [unit for unit in units if unit not in UNITS and not unit.startswith("suffix:")] == []
        assert len(defaults["noValue"]) > 5

    def test_it_asks_the_chosen_data_source_something(self, panel):
        assert panel["targets"]
        for each in (panel, *panel["targets"]):
            assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}

    def test_a_legend_is_shown_where_there_are_lines(self, panel):
        if panel["type"] == "timeseries":
            assert panel["options"]["legend"]["showLegend"]


@each_target
class TestTarget:
    def test_ranges_follow_the_scrape_interval(self, target):
        ranges = set(re.findall(r"\[([^\]]+)\]", target.written))
        assert ranges <= {"$__rate_interval", "$__range"}

    def test_it_is_limited_to_the_chosen_servers(self, target):
        for matchers in re.findall(r"\b(?:lightllm|scrape)_\w+{([^}]*)}", target.written):
            own = 'instance=~"$lightllm"' in matchers  # LightLLM's own metrics have another instance and job
            other = 'instance=~"$other"' in matchers  # the other side of a comparison
            assert own or 'job=~"$job"' in matchers
            assert own or other or 'instance=~"$instance"' in matchers

    def test_no_metric_of_ours_is_asked_for_without_saying_whose(self, target):
        assert re.findall(r"\blightllm_\w+(?![\w{])", target.written) == []
