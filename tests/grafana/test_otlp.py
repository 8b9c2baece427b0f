"""``lightllm-otel grafana`` against Grafana's API."""

import json
import socket
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from dashboards import PATHS
from stub import Stub

from lightllm_otel.exporter import grafana as module
from lightllm_otel.exporter.grafana import GrafanaProblem, packaged
from lightllm_otel.tools import cli

pytest.importorskip("grafana_api")
SOURCE = ["--datasource", "Our Prometheus", "--prometheus-url", "http://prometheus:9090"]


@pytest.fixture(autouse=True)
def no_settings_of_the_developer(monkeypatch):
    for name in ("GRAFANA_URL", "GRAFANA_TOKEN", "GRAFANA_USER", "GRAFANA_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def stub():
    server = Stub()
    yield server
    server.close()


def call(stub, action, *more, token="right"):
    return cli.main(["grafana", action, "--url", stub.url, "--token", token, *more])


class TestPush:
    def test_the_first_one_creates_folder_data_source_and_all_dashboards(self, stub, capsys):
        assert call(stub, "push", *SOURCE) == 0
        assert set(stub.dashboards) == {path.stem for path in PATHS}
        assert (
            {each["meta"]["folderUid"] for each in stub.dashboards.values()} == set(stub.folders) == {"lightllm-otel"}
        )
        assert stub.datasources["Our Prometheus"]["url"] == "http://prometheus:9090"
        assert capsys.readouterr().out.count(": created") == len(PATHS) + 2

    def test_the_second_one_changes_nothing(self, stub, capsys):
        call(stub, "push", *SOURCE)
        stub.asked.clear()
        capsys.readouterr()
        assert call(stub, "push", *SOURCE) == 0
        assert stub.writes == []
        assert capsys.readouterr().out.count(": unchanged") == len(PATHS) + 2

    def test_as_json_it_says_the_same_of_each(self, stub, capsys):
        assert call(stub, "check", "--json") == 1
        due = json.loads(capsys.readouterr().out)
        assert {each["state"] for each in due["changes"]} == {"is missing"}
        assert call(stub, "push", "--json") == 0
        done = json.loads(capsys.readouterr().out)
        assert [each["what"] for each in done["changes"]] == [each["what"] for each in due["changes"]]
        assert {each["state"] for each in done["changes"]} == {"created"}
        assert call(stub, "check", "--json") == 0

    def test_a_dashboard_that_someone_changed_is_put_right_and_only_that(self, stub, capsys):
        call(stub, "push")
        stub.dashboards["lightllm-otel-fleet"]["dashboard"]["panels"][1]["title"] = "Mine"
        stub.asked.clear()
        assert call(stub, "push") == 0
        assert stub.writes == [("POST", "/api/dashboards/db")]
        assert stub.dashboards["lightllm-otel-fleet"]["dashboard"]["panels"][1]["title"] == "Servers"
        assert "dashboard LightLLM / Fleet: changed" in capsys.readouterr().out

    def test_a_dashboard_in_another_folder_is_moved_back(self, stub):
        call(stub, "push")
        stub.dashboards["lightllm-otel-fleet"]["meta"]["folderUid"] = "elsewhere"
        call(stub, "push")
        assert stub.dashboards["lightllm-otel-fleet"]["meta"]["folderUid"] == "lightllm-otel"

    def test_a_dry_run_shows_the_difference_and_writes_nothing(self, stub, capsys):
        call(stub, "push")
        stub.dashboards["lightllm-otel-fleet"]["dashboard"]["panels"][1]["title"] = "Mine"
        stub.asked.clear()
        capsys.readouterr()
        assert call(stub, "push", "--dry-run") == 0
        out = capsys.readouterr().out
        assert stub.writes == []
        assert '-   "title": "Mine",' in out
        assert '+   "title": "Servers",' in out
        assert "pluginVersion" not in out

    def test_the_data_source_is_pointed_elsewhere_by_its_uid(self, stub):
        call(stub, "push", *SOURCE)
        assert call(stub, "push", "--datasource", "Our Prometheus", "--prometheus-url", "http://other:9090") == 0
        assert stub.datasources["Our Prometheus"]["url"] == "http://other:9090"
        assert ("PUT", "/api/datasources/uid/uid-of-Our%20Prometheus") in stub.asked

    def test_the_dashboards_begin_with_that_data_source(self, stub):
        call(stub, "push", *SOURCE)
        (variable, *_) = stub.dashboards["lightllm-otel-fleet"]["dashboard"]["templating"]["list"]
        assert variable["current"]["value"] == "Our Prometheus"

    def test_no_route_has_a_number(self, stub):
        call(stub, "push", *SOURCE)
        call(stub, "push", "--datasource", "Our Prometheus", "--prometheus-url", "http://other:9090")
        known = ("/api/health", "/api/folders", "/api/dashboards/db", "/api/dashboards/uid/", "/api/datasources")
        assert all(path.startswith(known) for _, path in stub.asked)
        assert [path for _, path in stub.asked if path.rpartition("/")[2].isdigit()] == []

    def test_a_user_with_a_password_will_do(self, stub, monkeypatch):
        monkeypatch.setenv("GRAFANA_PASSWORD", "secret")
        assert cli.main(["grafana", "push", "--url", stub.url, "--user", "admin"]) == 0
        assert stub.dashboards

    def test_a_grafana_below_a_path_is_found_there(self):
        stub = Stub(prefix="/grafana")
        try:
            assert call(stub, "push") == 0
            assert stub.dashboards
        finally:
            stub.close()


class TestCheck:
    def test_it_fails_until_everything_is_there(self, stub, capsys):
        assert call(stub, "check") == 1
        assert "is missing" in capsys.readouterr().out
        call(stub, "push")
        stub.asked.clear()
        capsys.readouterr()
        assert call(stub, "check") == 0
        assert stub.writes == []
        out = capsys.readouterr().out
        assert out.startswith("Grafana 13.2.2 at ")
        assert out.count("is current") == len(PATHS) + 1


@pytest.mark.parametrize(
    ("role", "words", "sentence"),
    [
        ("Admin", ["push", "--token", "wrong"], "does not know this token or password"),
        ("Viewer", ["push", "--token", "right"], "dashboards need the role Editor"),
        ("Editor", ["push", "--token", "right", *SOURCE], "data sources Admin"),
        (
            "Admin",
            ["push", "--token", "right", "--datasource", "None"],
            "has no data source None; give --prometheus-url",
        ),
    ],
)
def test_a_problem_is_one_sentence(role, words, sentence, capsys):
    stub = Stub(role=role)
    try:
        assert cli.main(["grafana", words[0], "--url", stub.url, *words[1:]]) == 1
    finally:
        stub.close()
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_a_data_source_that_is_no_prometheus_is_left_alone(stub, capsys):
    stub.datasources["Our Prometheus"] = {"name": "Our Prometheus", "type": "loki", "uid": "x", "url": "http://loki"}
    assert call(stub, "push", *SOURCE) == 1
    assert "is of type loki" in capsys.readouterr().err
    assert stub.writes == []


def test_where_nothing_listens_it_says_so(capsys):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert cli.main(["grafana", "push", "--url", f"http://127.0.0.1:{port}", "--token", "right"]) == 1
    assert "does not answer (ConnectionError)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["push"], "pass --url"),
        (["push", "--url", "http://x"], "pass --token"),
        (["push", "--url", "http://x", "--user", "me"], "pass --token"),
        (
            ["push", "--url", "http://x", "--token", "t", "--prometheus-url", "http://p"],
            "needs the name of the data source",
        ),
    ],
)
def test_usage(words, sentence, capsys):
    assert cli.main(["grafana", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_an_address_that_is_none_is_refused():
    with pytest.raises(GrafanaProblem, match="is not the address of a Grafana"):
        module.Grafana("ftp://x", "token")


def test_without_dashboards_it_says_where_they_come_from(tmp_path):
    with pytest.raises(GrafanaProblem, match="this installation has no dashboards"):
        packaged([tmp_path])


def test_the_wheel_brings_the_dashboards(wheel):
    import zipfile

    names = zipfile.ZipFile(wheel).namelist()
    assert {f"lightllm_otel/dashboards/{path.name}" for path in PATHS} <= set(names)
