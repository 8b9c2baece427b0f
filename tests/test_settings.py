"""The table of settings: every one is read, and a wrong value is one clear sentence."""

from pathlib import Path

import pytest

from lightllm_otel.settings import SETTINGS, Settings, is_on
from lightllm_otel.vocabulary import Level

WRONG = {
    "LEVEL": "everything", "SAMPLE_EVERY": "0", "PORT": "70000", "RING_MIB": "-1", "RECORD_MAX_MIB": "much",
}  # fmt: skip


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


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_turns_the_plugin_off_and_is_one_sentence(name):
    variable = f"LIGHTLLM_OTEL_{name}"
    settings = Settings.from_env({"LIGHTLLM_OTEL": "1", variable: WRONG[name]})
    assert not settings.enabled
    (problem,) = settings.problems
    assert problem.startswith(f"{variable}={WRONG[name]} is not ")
    assert "\n" not in problem


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_is_documented_and_its_default_can_be_read(setting):
    assert setting.help.endswith(".")
    setting.parse(setting.default)
    assert hasattr(Settings.from_env({}), setting.field)


@pytest.mark.parametrize(
    ("value", "on"),
    [("1", True), ("true", True), ("on", True), ("", False), ("0", False), ("False", False), ("off", False)],
)
def test_the_switch_has_the_words_of_the_pth_file(value, on):
    assert is_on({"LIGHTLLM_OTEL": value}) is on
    boot = Path(__file__).resolve().parents[1] / "lightllm_otel" / "activate" / "lightllm_otel_boot.pth"
    assert '("", "0", "false", "off")' in boot.read_text()
    assert len(boot.read_text().splitlines()) == 1


def test_learned_expectations_have_a_place_also_without_a_home(monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/var/lib/state")
    assert str(Settings.from_env({}).state) == "/var/lib/state/lightllm-otel"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(Settings.from_env({}).state) == "/home/somebody/.local/state/lightllm-otel"
    monkeypatch.setattr("lightllm_otel.settings.os.path.expanduser", lambda path: path)
    assert str(Settings.from_env({}).state).endswith("/state")
    assert Settings.from_env({"LIGHTLLM_OTEL_STATE": "/elsewhere"}).state.parts == ("/", "elsewhere")
