"""Start of a Python process that imports LightLLM (here an empty package of that name) with LIGHTLLM_OTEL on."""

import os
import subprocess
import sys

import pytest

START = "from lightllm_otel.inject import _lightllm_otel_boot as boot; boot.start()"
BOOT = f"{START}; import lightllm"
HOOKED = (
    "import wrapt.importer; assert bool(wrapt.importer._post_import_hooks) is {}, wrapt.importer._post_import_hooks"
)


@pytest.fixture
def start(tmp_path):
    """Run Python with an empty package ``lightllm``, and return its stderr."""
    (tmp_path / "lightllm").mkdir()
    (tmp_path / "lightllm" / "__init__.py").write_text("")

    def run(code=BOOT, **environ):
        plain = {name: value for name, value in os.environ.items() if not name.startswith("LIGHTLLM_")}
        environ = {**plain, "LIGHTLLM_OTEL": "1", "PYTHONPATH": str(tmp_path), **environ}
        # -S: no .pth file, so that an installed copy of ours does not say it first.
        command = [sys.executable, "-S", "-c", f"import sys; sys.path += {sys.path!r}\n{code}"]
        done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr

    return run


@pytest.mark.parametrize(
    ("variable", "value"),
    [("SAMPLE_EVERY", "0"), ("LEVEL", "all"), ("PORT", "x"), ("DIR", "~nosuchuser"), ("NVTX", "maybe")],
)
def test_a_wrong_setting_is_one_clear_line_and_the_server_is_measured(start, variable, value):
    (line,) = start(f"{BOOT}; {HOOKED.format(True)}", **{f"LIGHTLLM_OTEL_{variable}": value}).splitlines()
    assert f"LIGHTLLM_OTEL_{variable}={value} is not" in line
    assert "ERROR" in line


def test_a_kubernetes_service_of_our_name_is_one_line_and_the_server_is_measured(start):
    (line,) = start(f"{BOOT}; {HOOKED.format(True)}", LIGHTLLM_OTEL_PORT="tcp://10.0.0.1:9464").splitlines()
    assert "WARNING" in line
    assert "was set by Kubernetes for the Service lightllm-otel" in line


def test_a_plugin_that_is_off_says_nothing_of_its_other_settings(start):
    wrong = {"LIGHTLLM_OTEL_LEVEL": "all", "LIGHTLLM_OTEL_PORT": "tcp://10.0.0.1:9464"}
    (line,) = start(BOOT, LIGHTLLM_OTEL="enabled", **wrong).splitlines()
    assert "LIGHTLLM_OTEL=enabled is neither on" in line
    assert start(f"import os; {START}; os.environ['LIGHTLLM_OTEL'] = 'off'; import lightllm", **wrong) == ""


def test_children_do_not_repeat_it(start):
    code = (
        BOOT
        + "; import subprocess; subprocess.run([sys.executable, '-S', '-c', "
        + repr(f"import sys; sys.path += {sys.path!r}\n{BOOT}")
        + "])"
    )
    assert len(start(code, LIGHTLLM_OTEL_SAMPLE_EVERY="0", LIGHTLLM_OTEL_PORT="tcp://10.0.0.1:9464").splitlines()) == 2


def test_the_exporter_does_not_repeat_what_its_server_has_said(start, tmp_path):
    exporter = (
        "from lightllm_otel.tools.cli import main; sys.argv = ['']; main(['exporter', '--folder', '/proc/nowhere'])"
    )
    environ = {"LIGHTLLM_OTEL_SAMPLE_EVERY": "0"}
    assert "LIGHTLLM_OTEL_SAMPLE_EVERY=0 is not" in run_exporter(start, exporter, environ)
    assert "LIGHTLLM_OTEL_SAMPLE_EVERY" not in run_exporter(start, exporter, {**environ, "LIGHTLLM_OTEL_REPORTED": "1"})


def run_exporter(start, exporter, environ):
    return start(f"try: {exporter}\nexcept (OSError, SystemExit): pass", **environ)


def test_a_process_that_does_not_import_lightllm_says_and_imports_nothing(start):
    code = f"{START}; assert 'lightllm_otel.settings' not in sys.modules and 'wrapt' not in sys.modules"
    assert start(code, LIGHTLLM_OTEL_SAMPLE_EVERY="0") == ""


def test_lightllm_that_was_imported_before_us_is_hooked_at_once(start):
    assert start(f"import lightllm; {START}; {HOOKED.format(True)}") == ""


def test_level_off_hooks_nothing(start):
    assert start(f"{BOOT}; {HOOKED.format(False)}", LIGHTLLM_OTEL_LEVEL="off") == ""


def test_a_plugin_that_cannot_be_imported_is_one_line_and_lightllm_is(start):
    code = f"sys.modules['wrapt'] = None; {BOOT}; assert lightllm.__spec__"
    (line,) = start(code).splitlines()
    assert line.startswith("lightllm-otel could not start and stays off: ")
