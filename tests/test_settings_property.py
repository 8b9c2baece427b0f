"""Any text in any variable gives settings, and a sentence where it cannot be used; never an exception."""

import enum
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lightllm_otel.otel_environment import OtelEnvironment
from lightllm_otel.settings import PREFIX, SETTINGS, Settings

FEW = settings(
    max_examples=200, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck),
)  # fmt: skip
VARIABLES = [PREFIX, *(setting.variable for setting in SETTINGS)]
OTEL_VARIABLES = [
    "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_METRIC_EXPORT_INTERVAL", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_SERVICE_NAME",
    "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG", "OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER", "OTEL_SDK_DISABLED",
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
]  # fmt: skip
# All that an environment can hold: no NUL, and single bytes that are no UTF-8, which Python shows as surrogates.
ANYTHING = st.text(st.characters(exclude_characters="\0", exclude_categories=())).filter(
    lambda text: not any("\ud800" <= each < "\udc80" or "\udcff" < each <= "\udfff" for each in text)
)
LIKELY = st.sampled_from((
    "", "0", "1", "on", "off", "64", "-1", "1e3", "0x10", "1_000", "１２", "9" * 5000, "1,8,16-32", "1-", "-8", "8-1", "1-65536",
    "1-99999999999999999999999", "127.0.0.1", "[::1]", "::", "tcp://10.0.0.1:9464", "http://[", "http://host:port", "~", "~x/y",
    "~\udcff", "/", "/dev/null", ".", "x" * 100_000, "a\nb", "\x1b[2J", "'", '"', "''", "'1", '"1"', "1 ", " ", "\u00a0", "nan",
    "inf", "0.5", "true", "Level.STEPS", "steps", "operators", "auto", "force", "a=b,c=d", "a=%zz", "=", ",", "a=\udcff",
    "parentbased",
))  # fmt: skip
TEXTS = LIKELY | ANYTHING | st.tuples(LIKELY, ANYTHING).map("".join)
TYPES = {
    "level": enum.Enum, "graphs": enum.Enum, "sample_every": int, "graph_batch_sizes": frozenset, "graph_mib": int,
    "graph_seconds": int, "host": str, "port": (int, type(None)), "server": str, "directory": Path,
    "targets": (Path, type(None)), "ring_mib": int, "nvml": bool, "state": (Path, type(None)), "baseline": (Path, type(None)),
    "record": (Path, type(None)), "record_max_mib": int, "nvtx": bool,
}  # fmt: skip


@FEW
@given(environ=st.dictionaries(st.sampled_from(VARIABLES), TEXTS, max_size=6))
@example(environ=dict.fromkeys(VARIABLES, "\udcff"))
@example(environ=dict.fromkeys(VARIABLES, "9" * 5000))
def test_any_text_gives_settings_or_a_sentence(environ):
    found = Settings.from_env(environ)
    assert isinstance(found.enabled, bool)
    for field, kind in TYPES.items():
        assert isinstance(getattr(found, field), kind)
    usual = Settings.from_env({})
    for problem in (*found.problems, *found.notes):
        assert problem.isprintable()  # one line of a log, whatever the terminal
        assert len(problem) < 700
        assert problem.startswith(tuple(f"{variable}=" for variable in environ))
    named = {problem.partition("=")[0] for problem in found.problems}
    changed = {field for field in TYPES if getattr(found, field) != getattr(usual, field)}
    assert changed <= {s.field for s in SETTINGS if s.variable in environ} | {
        s.wrong[0] for s in SETTINGS if s.wrong and s.variable in named
    }


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_the_settings_have_the_types_above(setting):
    assert setting.field in TYPES


@FEW
@given(environ=st.dictionaries(st.sampled_from(OTEL_VARIABLES), TEXTS, max_size=5))
def test_any_text_in_opentelemetrys_variables_is_read_without_an_exception(environ):
    OtelEnvironment.from_env(environ)
