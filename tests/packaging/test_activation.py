"""Every Python process that imports LightLLM is ours when LIGHTLLM_OTEL says so, and none is when it does not.

The children here stand for LightLLM's processes: spawned, forked, and started as commands of their own. The package that
they import is an empty one of LightLLM's name.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from lightllm_otel.settings import switch

ROOT = Path(__file__).resolve().parents[2]

REPORT = """
import json, multiprocessing, os, subprocess, sys

def ours():
    if os.environ.get("IMPORT_HOST", "1") == "1":
        import lightllm
        assert type(lightllm.__loader__).__name__ == type(lightllm.__spec__.loader).__name__ == "SourceFileLoader"
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
    code = "import json, report; print(json.dumps(report.ours()))"
    seen["command"] = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    print(json.dumps(seen))
"""
BOOT = "_lightllm_otel_boot"
STARTED = {BOOT, "lightllm_otel.inject.bootstrap"}
PROCESSES = {"parent", "spawn", "fork", "command"}
# The rule, and every spelling that people are known to have used; quotes and space are what files of variables keep.
ON = ["1", "true", "on", "yes", "TRUE", "Yes", "oN", " 1 ", '"1"', "'true'", '" on "', "1\n"]
OFF = [
    None,
    "",
    "0",
    "false",
    "off",
    "no",
    "none",
    "null",
    "disabled",
    "OFF",
    "No",
    "None",
    " 0",
    '"0"',
    "'no'",
    '""',
    "\t",
    "off\n",
]
NEITHER = ["2", "enable", "enabled", "y", "ja", "1 # comment", "tcp://10.0.0.1:9464", '""1""', "'1", "是"]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "report.py"
    path.write_text(REPORT)
    (tmp_path / "lightllm").mkdir()
    (tmp_path / "lightllm" / "__init__.py").write_text("")
    return path


def seen_by(command: list[str], environment: dict[str, str], cwd: Path) -> dict[str, list[str]]:
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    seen: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return seen


def assert_all_active(seen: dict[str, list[str]]) -> None:
    assert seen.keys() == PROCESSES
    for process, modules in seen.items():
        assert set(modules) >= STARTED, (process, modules)


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


def test_the_wheel_starts_us_in_every_process(
    wheel_python: Path, script: Path, plain_environment: dict[str, str]
) -> None:
    environment = {**plain_environment, "LIGHTLLM_OTEL": "1"}
    assert_all_active(seen_by([str(wheel_python), str(script)], environment, script.parent))


@dataclasses.dataclass(frozen=True)
class Seen:
    """What of ours a process has before and after it imports LightLLM, whether it has our hooks, and its stderr's lines."""

    before: set[str]
    after: set[str]
    hooked: bool
    said: list[str]


IMPORTING = """
import json, sys
ours = lambda: [name for name in sys.modules if "lightllm_otel" in name]
before = ours()
import lightllm
hooks = sys.modules["wrapt.importer"]._post_import_hooks if "wrapt.importer" in sys.modules else []
print(json.dumps([before, ours(), "lightllm.common.basemodel.basemodel" in hooks]))
"""


def importing(command: list[str], environment: dict[str, str], word: str | None, cwd: Path) -> Seen:
    environment = environment if word is None else {**environment, "LIGHTLLM_OTEL": word}
    environment = {**environment, "PYTHONUTF8": "1"}
    done = subprocess.run(
        [*command, "-c", IMPORTING],
        env=environment,
        cwd=cwd,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before, after, hooked = json.loads(done.stdout)
    return Seen(set(before), set(after), hooked, done.stderr.splitlines())


@pytest.mark.parametrize("word", ON)
def test_the_wheel_starts_us_for_each_word_that_means_on(
    wheel_python: Path, script: Path, plain_environment: dict[str, str], word: str
) -> None:
    seen = importing([str(wheel_python)], plain_environment, word, script.parent)
    assert (seen.before, seen.hooked, seen.said) == ({BOOT}, True, [])
    assert switch(word) is True


@pytest.mark.parametrize("word", OFF)
def test_off_means_that_nothing_of_ours_is_imported_also_with_lightllm(
    wheel_python: Path, script: Path, plain_environment: dict[str, str], word: str | None
) -> None:
    seen = importing([str(wheel_python)], plain_environment, word, script.parent)
    allowed = {BOOT} if sys.version_info >= (3, 15) else set()  # site.py itself imports a .start file's module
    assert seen.after <= allowed
    assert (seen.hooked, seen.said) == (False, [])
    assert switch(word or "") is False


@pytest.mark.parametrize("word", NEITHER)
def test_what_is_neither_on_nor_off_is_off_and_one_line_says_what_to_do(
    wheel_python: Path, script: Path, plain_environment: dict[str, str], word: str
) -> None:
    seen = importing([str(wheel_python)], plain_environment, word, script.parent)
    assert (seen.before, seen.hooked) == ({BOOT}, False)
    (line,) = seen.said
    assert f"LIGHTLLM_OTEL={word} is neither on (1, true, on, yes)" in line
    assert "nothing is measured. Set LIGHTLLM_OTEL=1" in line
    with pytest.raises(ValueError, match=re.escape(word)):
        switch(word)


@pytest.mark.parametrize("word", ["yes", '"1"', "0", "no", "none", "off\n", '"0"', "disabled"])
def test_run_follows_the_same_rule(
    wheel_python: Path, script: Path, plain_environment: dict[str, str], word: str
) -> None:
    run = [str(wheel_python), "-m", "lightllm_otel", "run", "--", str(wheel_python)]
    seen = importing(run, plain_environment, word, script.parent)
    assert seen.hooked is (word in ON)
    assert [line.partition(", so ")[0] for line in seen.said] == (
        [] if word in ON else [f"lightllm-otel run: LIGHTLLM_OTEL={word.strip()}"]
    )


@pytest.mark.parametrize("word", [None, "", '""', " "])
def test_run_turns_on_what_is_unset(
    wheel_python: Path, script: Path, plain_environment: dict[str, str], word: str | None
) -> None:
    run = [str(wheel_python), "-m", "lightllm_otel", "run", "--", str(wheel_python)]
    seen = importing(run, plain_environment, word, script.parent)
    assert (seen.hooked, seen.said) == (True, [])


def test_run_leaves_it_to_the_server_to_say_what_is_neither_on_nor_off(
    wheel_python: Path, script: Path, plain_environment: dict[str, str]
) -> None:
    run = [str(wheel_python), "-m", "lightllm_otel", "run", "--", str(wheel_python)]
    seen = importing(run, plain_environment, "enabled", script.parent)
    assert (seen.hooked, len(seen.said)) == (False, 1)


def test_an_editable_install_starts_us_in_every_process(
    editable_python: Path, script: Path, plain_environment: dict[str, str]
) -> None:
    environment = {**plain_environment, "LIGHTLLM_OTEL": "1"}
    assert_all_active(seen_by([str(editable_python), str(script)], environment, script.parent))


def test_off_means_that_nothing_of_ours_is_imported_in_any_process(
    wheel_python: Path, script: Path, plain_environment: dict[str, str]
) -> None:
    seen = seen_by([str(wheel_python), str(script)], {**plain_environment, "LIGHTLLM_OTEL": "0"}, script.parent)
    allowed = {BOOT} if sys.version_info >= (3, 15) else set()  # site.py itself imports a .start file's module
    assert {process: set(modules) - allowed for process, modules in seen.items()} == {name: set() for name in PROCESSES}


def test_on_costs_a_process_without_lightllm_one_small_module(
    wheel_python: Path, script: Path, plain_environment: dict[str, str]
) -> None:
    """The hook runs in pip, in every script of the site, and in each tool that a server starts."""
    environment = {**plain_environment, "IMPORT_HOST": "0"}
    seen = seen_by([str(wheel_python), str(script)], {**environment, "LIGHTLLM_OTEL": "1"}, script.parent)
    assert seen == {name: [BOOT] for name in PROCESSES}

    code = "import json, sys; print(json.dumps(sorted(sys.modules)))"
    off, on = (
        set(
            json.loads(
                subprocess.check_output([str(wheel_python), "-c", code], env={**environment, "LIGHTLLM_OTEL": word})
            )
        )
        for word in ("0", "1")
    )
    assert on - off == {BOOT}


HOSTS_HOOKS = """
import sys, wrapt
seen = []
class Other:
    def find_spec(self, name, path=None, target=None):
        seen.append(name)
sys.meta_path.insert(0, Other())
wrapt.register_post_import_hook(lambda module: seen.append("wrapped " + module.__name__), "lightllm")
wrapt.register_post_import_hook(lambda module: seen.append("wrapped " + module.__name__), "lightllm.part")
import importlib.util
assert importlib.util.find_spec("lightllm").loader.is_package("lightllm")  # somebody asks, and imports nothing
assert "lightllm_otel" not in sys.modules
import lightllm, lightllm.part
assert "lightllm_otel.inject.bootstrap" in sys.modules
assert seen.count("wrapped lightllm") == seen.count("wrapped lightllm.part") == 1, seen
assert lightllm.__loader__ is lightllm.__spec__.loader and type(lightllm.__loader__).__name__ == "SourceFileLoader"
import importlib
importlib.reload(lightllm)
"""


def test_import_hooks_of_others_see_what_they_saw_without_us(
    wheel_python: Path, script: Path, plain_environment: dict[str, str]
) -> None:
    (script.parent / "lightllm" / "part.py").write_text("")
    environment = {**plain_environment, "LIGHTLLM_OTEL": "1"}
    command = [str(wheel_python), "-W", "error", "-c", HOSTS_HOOKS]
    done = subprocess.run(command, env=environment, cwd=script.parent, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("form", "content"),
    [("package", "raise RuntimeError('of the host')"), ("missing", None), ("namespace", None), ("zip", "")],
)
def test_lightllm_is_found_and_fails_as_it_does_without_us(
    wheel_python: Path, plain_environment: dict[str, str], tmp_path: Path, form: str, content: str | None
) -> None:
    if form == "zip":
        with zipfile.ZipFile(tmp_path / "host.zip", "w") as archive:
            archive.writestr("lightllm/__init__.py", "")
    elif form != "missing":
        (tmp_path / "lightllm").mkdir()
        if content is not None:
            (tmp_path / "lightllm" / "__init__.py").write_text(content)
    site = str(wheel_python.parents[1])  # a real LightLLM that is installed must not be found
    code = (
        "import sys\n"
        f"sys.path[:] = [entry for entry in sys.path if 'site-packages' not in entry or {site!r} in entry]\n"
        "for _ in range(2):\n"
        "    try:\n"
        "        import lightllm; print(lightllm.__spec__.loader.__class__, lightllm.__path__)\n"
        "    except Exception as error: print(repr(error))\n"
    )
    said = {
        word: subprocess.run(
            [str(wheel_python), "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
            env={**plain_environment, "LIGHTLLM_OTEL": word, "PYTHONPATH": str(tmp_path / "host.zip")},
        ).stdout
        for word in ("0", "1")
    }  # fmt: skip
    assert said["0"] == said["1"]


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
