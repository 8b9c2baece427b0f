"""Table of settings: every setting is read, and a wrong value gives one clear sentence."""

import re
from pathlib import Path

import pytest
from opentelemetry.sdk import environment_variables

from lightllm_otel.inject import _lightllm_otel_boot as boot
from lightllm_otel.otel_environment import OtelEnvironment
from lightllm_otel.records.vocabulary import Level
from lightllm_otel.settings import OFF_WORDS, SETTINGS, GraphPolicy, Settings, switch

DEFAULT = object()  # one that depends on the environment
# A value that cannot be used, and what becomes of which field: the default, unless that would do more than was asked for.
WRONG = [
    ("LEVEL", "everything", "level", Level.STEPS),
    ("SAMPLE_EVERY", "0", "sample_every", 64),
    ("SAMPLE_EVERY", "9" * 400, "sample_every", 64),
    ("GRAPHS", "maybe", "graphs", GraphPolicy.OFF),
    ("GRAPH_BATCH_SIZES", "1,8,x", "graphs", GraphPolicy.OFF),
    ("GRAPH_BATCH_SIZES", "1-50000000", "graphs", GraphPolicy.OFF),
    ("GRAPH_MIB", "64MB", "graphs", GraphPolicy.OFF),
    ("GRAPH_SECONDS", "0.5", "graphs", GraphPolicy.OFF),
    ("HOST", "http://0.0.0.0", "host", "127.0.0.1"),
    ("HOST", "0.0.0.0:9464", "host", "127.0.0.1"),
    ("PORT", "70000", "port", None),
    ("PORT", "tcp:10.0.0.1", "port", None),
    ("DIR", "~nosuchuser/rings", "directory", DEFAULT),
    ("TARGETS", "~nosuchuser/targets", "targets", DEFAULT),
    ("RING_MIB", "-1", "ring_mib", 4),
    ("NVML", "garbage", "nvml", False),
    ("NVTX", "garbage", "nvtx", False),
    ("STATE", "~nosuchuser", "state", DEFAULT),
    ("BASELINE", "~nosuchuser/good.json", "baseline", None),
    ("RECORD", "~nosuchuser", "record", None),
    ("RECORD_MAX_MIB", "much", "record_max_mib", 256),
]


def service_links(service: str, address: str = "10.0.0.1") -> dict[str, str]:
    """Return the variables that Kubernetes sets in every container of the namespace for a Service with two ports."""
    name, at = service.upper().replace("-", "_"), f"[{address}]" if ":" in address else address
    links = {
        "SERVICE_HOST": address, "SERVICE_PORT": "9464", "SERVICE_PORT_METRICS": "9464", "PORT": f"tcp://{at}:9464",
        "SERVICE_PORT_GRPC": "4317",
    }  # fmt: skip
    for port in ("9464", "4317"):
        start = f"PORT_{port}_TCP"
        links |= {start: f"tcp://{at}:{port}", f"{start}_PROTO": "tcp", f"{start}_PORT": port, f"{start}_ADDR": address}
    return {f"{name}_{end}": value for end, value in links.items()}


OURS = ["lightllm-otel", *("lightllm-otel-" + setting.name.lower().replace("_", "-") for setting in SETTINGS)]
OPENTELEMETRYS = [
    "otel-exporter-otlp",
    "otel-exporter-otlp-metrics",
    "otel-exporter-otlp-traces",
    "otel-traces",
    "otel",
]


def test_defaults():
    settings = Settings.from_env({"LIGHTLLM_OTEL": "1"})
    assert settings.enabled
    assert (settings.level, settings.sample_every, settings.host, settings.port) == (
        Level.OPERATORS,
        64,
        "127.0.0.1",
        None,
    )
    assert settings.record is None
    assert settings.problems == ()


def test_values_are_taken_from_the_environment():
    environ = {
        "LIGHTLLM_OTEL": "on", "LIGHTLLM_OTEL_LEVEL": "Steps", "LIGHTLLM_OTEL_SAMPLE_EVERY": "16",
        "LIGHTLLM_OTEL_PORT": "9500", "LIGHTLLM_OTEL_DIR": "/run/otel", "LIGHTLLM_OTEL_RECORD": "/data",
    }  # fmt: skip
    settings = Settings.from_env(environ)
    assert (settings.level, settings.sample_every, settings.port) == (Level.STEPS, 16, 9500)
    assert (settings.directory, settings.record) == (Path("/run/otel"), Path("/data"))


@pytest.mark.parametrize(("name", "value", "field", "becomes"), WRONG)
def test_a_wrong_value_costs_that_setting_alone_and_is_one_sentence(name, value, field, becomes):
    variable = f"LIGHTLLM_OTEL_{name}"
    settings = Settings.from_env({"LIGHTLLM_OTEL": "1", variable: value, "LIGHTLLM_OTEL_SERVER": "mine"})
    assert settings.enabled
    assert getattr(settings, field) == (getattr(Settings.from_env({}), field) if becomes is DEFAULT else becomes)
    changed = {name for name, value in vars(settings).items() if value != getattr(Settings.from_env({}), name)}
    assert changed <= {"enabled", "problems", "server", field}
    (problem,) = settings.problems
    assert problem.startswith(f"{variable}={value[:80]}")
    assert " is not " in problem
    assert problem.endswith(". Correct it and restart the server")
    assert len(problem) < 330
    assert "\n" not in problem


def test_every_setting_that_can_be_wrong_is_above():
    free = {"SERVER"}  # any text is a name
    assert {name for name, *_ in WRONG} == {setting.name for setting in SETTINGS} - free


def test_a_wrong_value_is_shown_as_one_short_line():
    (problem,) = Settings.from_env({"LIGHTLLM_OTEL_PORT": "94\n64\x1b[2J" + "x" * 5000}).problems
    assert problem.isprintable()
    assert len(problem) < 300


@pytest.mark.parametrize("quote", ["'", '"'])
def test_quotes_that_env_files_keep_are_no_part_of_a_value(quote):
    environ = {
        "LEVEL": "steps",
        "SAMPLE_EVERY": " 8 ",
        "PORT": "9500",
        "DIR": "/run/otel",
        "NVML": "off",
        "SERVER": "a b",
    }
    environ = {f"LIGHTLLM_OTEL_{name}": f" {quote}{value}{quote}" for name, value in environ.items()}
    settings = Settings.from_env(environ)
    assert settings.problems == ()
    assert (settings.level, settings.sample_every, settings.port) == (Level.STEPS, 8, 9500)
    assert (settings.directory, settings.nvml, settings.server) == (Path("/run/otel"), False, "a b")


@pytest.mark.parametrize("host", ["::1", "[::1]", "::", "0.0.0.0", "localhost", "node-7.example", "fe80::1%eth0"])
def test_addresses_are_taken_as_they_are(host):
    settings = Settings.from_env({"LIGHTLLM_OTEL_HOST": host})
    assert (settings.host, settings.problems) == (host.strip("[]"), ())


@pytest.mark.parametrize("address", ["10.0.0.1", "fd00::1"])
@pytest.mark.parametrize("service", OURS)
def test_a_kubernetes_service_of_our_name_changes_no_setting(service, address):
    settings = Settings.from_env({"LIGHTLLM_OTEL": "1", **service_links(service, address)})
    expected = Settings.from_env({"LIGHTLLM_OTEL": "1"})
    assert {**vars(settings), "notes": ()} == vars(expected)
    assert len(settings.notes) == (service == "lightllm-otel")
    for note in settings.notes:
        assert (
            "was set by Kubernetes for the Service lightllm-otel, so the default is used: the first free one of" in note
        )
        assert "enableServiceLinks: false" in note


def test_what_a_pod_says_itself_comes_before_its_services():
    settings = Settings.from_env({**service_links("lightllm-otel"), "LIGHTLLM_OTEL_PORT": "9500"})
    assert (settings.port, settings.notes) == (9500, ())


@pytest.mark.parametrize("service", [*OPENTELEMETRYS, *OURS])
def test_a_kubernetes_service_turns_no_export_on_and_is_no_problem(service):
    assert OtelEnvironment.from_env(service_links(service)) == OtelEnvironment()
    exporting = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
    assert OtelEnvironment.from_env({**exporting, **service_links(service)}) == OtelEnvironment.from_env(exporting)


def test_no_variable_that_the_sdk_reads_is_one_that_kubernetes_makes():
    """The SDK's exporters read the environment themselves. Two variables belong to exporters that are never loaded here."""
    read = {name for name in vars(environment_variables) if name.startswith("OTEL_")}
    assert len(read) > 50
    made = re.compile(r".*_(SERVICE_(HOST|PORT)(_.*)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)")
    assert {name for name in read if made.fullmatch(name)} <= {
        "OTEL_EXPORTER_JAEGER_AGENT_PORT",
        "OTEL_EXPORTER_PROMETHEUS_PORT",
    }


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_is_documented_and_its_default_can_be_read(setting):
    assert setting.help.endswith(".")
    setting.parse(setting.default)
    assert hasattr(Settings.from_env({}), setting.field)


@pytest.mark.parametrize("name", ["NVML", "NVTX"])
@pytest.mark.parametrize(
    ("value", "on"),
    [("1", True), ("YES", True), ('"true"', True), ("0", False), ("no", False), ("none", False), ("'off'", False)],
)
def test_every_switch_has_one_rule(name, value, on):
    settings = Settings.from_env({"LIGHTLLM_OTEL": value, f"LIGHTLLM_OTEL_{name}": value})
    assert settings.enabled is getattr(settings, name.lower()) is switch(value) is on
    assert settings.problems == ()


@pytest.mark.parametrize("word", [word for word in OFF_WORDS if word])
def test_every_word_for_off_is_one_where_off_is_a_choice(word):
    settings = Settings.from_env({"LIGHTLLM_OTEL_LEVEL": word.upper(), "LIGHTLLM_OTEL_GRAPHS": f"'{word}'"})
    assert (settings.level, settings.graphs, settings.problems) == (Level.OFF, GraphPolicy.OFF, ())


def test_the_files_that_may_not_import_us_have_the_same_words_for_off():
    pth = (Path(boot.__file__).parent / "lightllm_otel_boot.pth").read_text()
    assert len(pth.splitlines()) == 1
    assert "(" + ", ".join(f'"{word}"' for word in OFF_WORDS) + ")" in pth
    assert boot.OFF_WORDS == OFF_WORDS


def test_learned_expectations_have_a_place_also_without_a_home(monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/var/lib/state")
    assert str(Settings.from_env({}).state) == "/var/lib/state/lightllm-otel"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(Settings.from_env({}).state) == "/home/somebody/.local/state/lightllm-otel"
    monkeypatch.setattr("lightllm_otel.settings.os.path.expanduser", lambda path: path)
    assert str(Settings.from_env({}).state).endswith("/state")
    assert Settings.from_env({"LIGHTLLM_OTEL_STATE": "/elsewhere"}).state.parts == ("/", "elsewhere")
