"""Each folder of the benchmarks answers one question: its scripts start, and only lib is shared."""

import ast
import functools
import re
import subprocess
import sys
from collections import Counter

import pytest
from _paths import BENCHMARKS, QUESTIONS, RESULTS, ROOT

README = BENCHMARKS / "README.md"
FOLDERS = (*QUESTIONS, "lib")
MODULES = sorted(path for folder in FOLDERS for path in (BENCHMARKS / folder).glob("*.py"))
SCRIPTS = [path for path in MODULES if '__name__ == "__main__"' in path.read_text()]
# It starts the servers once and measures cost, accuracy and faults on them.
ACROSS = {"served.py"}
STANDARD = getattr(sys, "stdlib_module_names", frozenset())  # from Python 3.10 on


def name_of(path):
    return path.relative_to(BENCHMARKS).as_posix()


@functools.cache
def folder_of(module):
    """Return the folder of a module of the benchmarks; None for any other."""
    found = [path for path in MODULES if path.stem == module]
    return found[0].parent.name if found else None


def imported(path):
    """Return the names of all modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_every_folder_is_a_question_or_lib_or_results():
    there = {path.name for path in BENCHMARKS.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert there == {*FOLDERS, "results"}


def test_the_table_has_every_script_and_every_result():
    """Each as ``benchmarks/FOLDER/SCRIPT.py`` in a command, or as a link to a file of results."""
    table = "\n".join(line for line in README.read_text().splitlines() if line.startswith("|"))
    results = {name_of(path) for path in RESULTS.rglob("*.json")}
    assert {name_of(path) for path in SCRIPTS} - set(re.findall(r"benchmarks/(\w+/\w+\.py)", table)) == set()
    assert set(re.findall(r"\]\((results/[\w/.-]+\.json)\)", table)) == results


def test_every_path_in_the_readme_exists():
    text = README.read_text()
    named = [ROOT / path for path in re.findall(r"benchmarks/[\w./-]*\w", text)]
    linked = [BENCHMARKS / path for path in re.findall(r"\]\(([^)#]+)", text)]
    assert [path for path in (*named, *linked) if not path.exists()] == []


def test_every_command_of_the_readme_has_options_that_its_script_knows():
    for script, words in re.findall(r"python benchmarks/(\w+/\w+\.py)([^`|]*)`", README.read_text()):
        source = (BENCHMARKS / script).read_text() + "".join(
            path.read_text() for path in MODULES if path.stem == "variants"
        )
        assert [word for word in re.findall(r"--[\w-]+", words) if f'"{word}"' not in source] == [], script


def test_module_names_are_unique_and_not_those_of_the_standard_library():
    """All folders are on sys.path at once."""
    names = Counter(path.stem for path in MODULES)
    assert [name for name, count in names.items() if count > 1 or name in STANDARD] == []


@pytest.mark.parametrize("path", [path for path in MODULES if path.name not in ACROSS], ids=name_of)
def test_a_module_imports_from_its_own_folder_and_lib_alone(path):
    folders = {folder_of(name) for name in imported(path)} - {None}
    assert folders <= {path.parent.name, "lib"}


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_every_script_starts(path, tmp_path):
    done = subprocess.run([sys.executable, str(path), "--help"], capture_output=True, text=True, cwd=tmp_path,
                          timeout=120, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
