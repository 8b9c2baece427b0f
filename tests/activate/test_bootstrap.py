"""What a Python process does when it starts with LIGHTLLM_OTEL on, without any LightLLM in it."""

import os
import subprocess
import sys

import pytest

BOOT = "from lightllm_otel.activate.bootstrap import activate; activate(); import lightllm"


@pytest.fixture
def start(tmp_path):
    """Run a Python with a stand-in for the package ``lightllm``; its stderr."""
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
    [("SAMPLE_EVERY", "0"), ("LEVEL", "all"), ("PORT", "x")],
)
def test_a_wrong_setting_is_one_clear_line_and_the_process_goes_on(start, variable, value):
    (line,) = start(**{f"LIGHTLLM_OTEL_{variable}": value}).splitlines()
    assert f"LIGHTLLM_OTEL_{variable}={value} is not" in line
    assert "ERROR" in line


def test_children_do_not_repeat_it(start):
    code = (
        BOOT
        + "; import subprocess; subprocess.run([sys.executable, '-S', '-c', "
        + repr(f"import sys; sys.path += {sys.path!r}\n{BOOT}")
        + "])"
    )
    assert len(start(code, LIGHTLLM_OTEL_SAMPLE_EVERY="0").splitlines()) == 1


def test_a_process_that_does_not_import_lightllm_says_nothing(start):
    assert start(BOOT.partition("; import lightllm")[0], LIGHTLLM_OTEL_SAMPLE_EVERY="0") == ""


def test_the_resource_tracker_is_left_alone(start):
    code = (
        "import lightllm_otel.activate.bootstrap as b; b.command_line = lambda: ['-c', 'from multiprocessing."
        "resource_tracker import main']; b.activate(); import lightllm"
    )
    assert start(code, LIGHTLLM_OTEL_SAMPLE_EVERY="0") == ""


def test_level_off_hooks_nothing(start):
    code = (
        BOOT
        + "; import wrapt.importer; assert not wrapt.importer._post_import_hooks, wrapt.importer._post_import_hooks"
    )
    assert start(code, LIGHTLLM_OTEL_LEVEL="off") == ""
