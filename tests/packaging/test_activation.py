"""Every Python process that a server can start is ours when LIGHTLLM_OTEL says so, and none is when it does not.

The children here stand for LightLLM's processes: spawned, forked, and started as commands of their own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

REPORT = """
import json, multiprocessing, os, subprocess, sys

def ours():
    return sorted(name for name in sys.modules if "lightllm_otel" in name)

def report(queue):
    queue.put(ours())

if __name__ == "__main__":
    seen = {"parent": ours()}
    for method in ("spawn", "fork"):
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        child = context.Process(target=report, args=(queue,))
        child.start()
        seen[method] = queue.get(timeout=60)
        child.join()
    code = "import json, sys; print(json.dumps(sorted(name for name in sys.modules if 'lightllm_otel' in name)))"
    seen["command"] = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    print(json.dumps(seen))
"""
BOOT = "_lightllm_otel_boot"
PROCESSES = {"parent", "spawn", "fork", "command"}


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "report.py"
    path.write_text(REPORT)
    return path


def seen_by(command: list[str], environment: dict[str, str], cwd: Path) -> dict[str, list[str]]:
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    seen: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return seen


def assert_all_active(seen: dict[str, list[str]]) -> None:
    assert seen.keys() == PROCESSES
    for process, modules in seen.items():
        assert {BOOT, "lightllm_otel.activate.bootstrap"} <= set(modules), (process, modules)


@pytest.fixture(scope="session")
def editable_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An editable install of a copy, so that no working tree is written to."""
    folder = tmp_path_factory.mktemp("editable")
    source = folder / "source"
    source.mkdir()
    for name in ("lightllm_otel", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "grafana"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    venv.create(folder / "venv", symlinks=True, with_pip=False)
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-I", "-m", "pip", "--python", str(python)]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "-e", str(source)], check=True, cwd=folder)
    (site_packages,) = (folder / "venv").glob("lib/python*/site-packages")
    (site_packages / "00-host.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture(scope="session")
def target_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pip install --target`: a folder that an immutable image can mount, in which site.py reads no .pth file."""
    folder = tmp_path_factory.mktemp("target")
    pip = [sys.executable, "-I", "-m", "pip"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", str(folder), str(wheel)], check=True)
    return folder


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has our dependencies, and nothing of ours."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True, with_pip=False)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "00-host.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


@pytest.mark.parametrize("word", ["1", "true", "on", "TRUE"])
def test_the_wheel_starts_us_in_every_process(
    wheel_python: Path, script: Path, plain_environment: dict[str, str], word: str
) -> None:
    environment = {**plain_environment, "LIGHTLLM_OTEL": word}
    assert_all_active(seen_by([str(wheel_python), str(script)], environment, script.parent))


def test_an_editable_install_starts_us_in_every_process(
    editable_python: Path, script: Path, plain_environment: dict[str, str]
) -> None:
    environment = {**plain_environment, "LIGHTLLM_OTEL": "1"}
    assert_all_active(seen_by([str(editable_python), str(script)], environment, script.parent))


@pytest.mark.parametrize("word", [None, "", "0", "false", "off", "OFF"])
def test_off_means_that_nothing_of_ours_is_imported(
    wheel_python: Path, script: Path, plain_environment: dict[str, str], word: str | None
) -> None:
    environment = dict(plain_environment) if word is None else {**plain_environment, "LIGHTLLM_OTEL": word}
    seen = seen_by([str(wheel_python), str(script)], environment, script.parent)
    allowed = {BOOT} if sys.version_info >= (3, 15) else set()  # site.py itself imports a .start file's module
    assert {process: set(modules) - allowed for process, modules in seen.items()} == {name: set() for name in PROCESSES}


def test_on_costs_a_process_without_lightllm_nothing_heavy(
    wheel_python: Path, plain_environment: dict[str, str], tmp_path: Path
) -> None:
    """The hook runs in pip and in every script of the site, too."""
    code = "import json, sys; print(json.dumps(sorted(sys.modules)))"
    environment = {**plain_environment, "LIGHTLLM_OTEL": "1"}
    done = subprocess.run(
        [str(wheel_python), "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    heavy = {"torch", "numpy", "opentelemetry", "prometheus_client", "lightllm"}
    assert heavy.isdisjoint(json.loads(done.stdout))
    assert not done.stderr


def test_run_needs_no_pth(wheel_python: Path, script: Path, plain_environment: dict[str, str], tmp_path: Path) -> None:
    """A site that forbids .pth files deletes them; -I and -S would not read them either."""
    copy = tmp_path / "without-pth"
    shutil.copytree(wheel_python.parents[1], copy, symlinks=True)
    for pattern in ("lightllm_otel_boot.pth", "lightllm_otel_boot.start"):
        for path in copy.glob(f"lib/python*/site-packages/{pattern}"):
            path.unlink()
    python = str(copy / "bin" / "python")
    environment = {**plain_environment, "LIGHTLLM_OTEL": "1"}
    assert all(not modules for modules in seen_by([python, str(script)], environment, tmp_path).values())

    run = [python, "-m", "lightllm_otel", "run", "--", python, str(script)]
    assert_all_active(seen_by(run, plain_environment, tmp_path))


def test_run_from_a_target_folder(
    bare_python: Path, target_folder: Path, script: Path, plain_environment: dict[str, str]
) -> None:
    environment = {**plain_environment, "PYTHONPATH": str(target_folder)}
    run = [str(bare_python), "-m", "lightllm_otel", "run", "--", str(bare_python), str(script)]
    assert_all_active(seen_by(run, environment, script.parent))


def test_run_keeps_the_sites_own_sitecustomize(
    wheel_python: Path, plain_environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os\nos.environ['SITE_OWN'] = 'ran'\n")
    environment = {**plain_environment, "PYTHONPATH": str(tmp_path)}
    python = str(wheel_python)
    code = "import os, sys; print(os.environ.get('SITE_OWN'), '_lightllm_otel_boot' in sys.modules)"
    run = [python, "-m", "lightllm_otel", "run", "--", python, "-c", code]
    done = subprocess.run(run, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ran", "True"]


def test_a_sitecustomize_that_hands_over_as_ours_does_runs_once(
    wheel_python: Path, plain_environment: dict[str, str], tmp_path: Path
) -> None:
    """Each looked for the other one anywhere on the path, and the site's own ran twice."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.machinery, importlib.util, os, sys\n"
        "sys.site_own = getattr(sys, 'site_own', '') + 'x'\n"
        "rest = [entry for entry in sys.path if entry != os.path.dirname(__file__)]\n"
        "hidden = importlib.machinery.PathFinder.find_spec('sitecustomize', rest)\n"
        "if hidden is not None and len(sys.site_own) < 5:\n"
        "    hidden.loader.exec_module(importlib.util.module_from_spec(hidden))\n"
    )
    environment = {**plain_environment, "PYTHONPATH": str(tmp_path)}
    python = str(wheel_python)
    run = [python, "-m", "lightllm_otel", "run", "--", python, "-c", "import sys; print(sys.site_own)"]
    done = subprocess.run(run, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["x"]


def test_run_passes_the_commands_status_on(
    wheel_python: Path, plain_environment: dict[str, str], tmp_path: Path
) -> None:
    run = [str(wheel_python), "-m", "lightllm_otel", "run", "--", str(wheel_python), "-c", "raise SystemExit(7)"]
    assert subprocess.run(run, env=plain_environment, cwd=tmp_path, check=False).returncode == 7
