"""Both READMEs, and what of them is told at length in docs, say what the code and the measurements say."""

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
PAGES = [ROOT / "docs" / f"{name}.md" for name in ("metrics", "measured", "versions")]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
OUTER_FORM = {"benchmark", "date", "gpu", "software", "commit", "command", "summary", "rows"}
MEASURED = re.compile(r"^## (?:Measured|实测)\n(.*?)(?=^## )", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
# With a decimal point (versions have two), or with a unit. "three repetitions" and "TP 1" are no measurements.
FIGURE = re.compile(r"(?<![\w.])(\d+\.\d+(?![\w.]*\.\d)|\d+(?= ?(?:µs|ms|s|min|%)(?![a-z])))")


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def claimed() -> list[float]:
    """Every number in the summary of a result."""

    def numbers(value: Any) -> Iterator[float]:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            for each in value:
                yield from numbers(each)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield float(value)

    return [number for path in RESULTS for number in numbers(json.loads(path.read_text())["summary"])]


def measured(readme: Path) -> str:
    found = MEASURED.search(readme.read_text())
    assert found is not None, f"{readme.name} has no section on measurements"
    return found[1]


def unfounded(text: str, known: list[float]) -> list[str]:
    """Figures in ``text`` that no known number rounds to, at the digits that are shown; a sign is no part of a figure."""

    def stands(figure: str) -> bool:
        digits = len(figure.partition(".")[2])
        return any(abs(round(abs(number), digits) - float(figure)) < 1e-9 for number in known)

    return [figure for figure in FIGURE.findall(text) if not stands(figure)]


def blocks(path: Path) -> list[str]:
    return re.findall(r"<!-- generated: (\w+) -->", path.read_text())


@pytest.mark.parametrize("page", [*READMES, *PAGES], ids=lambda path: path.name)
class TestEveryPage:
    def test_generated_blocks_are_current(self, page: Path, generate: ModuleType) -> None:
        """Else run: python docs/generate.py"""
        text = page.read_text()
        assert generate.fill(text) == text

    def test_links_lead_somewhere(self, page: Path) -> None:
        links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", CODE.sub("", page.read_text()))]
        assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []

    def test_metrics_have_names_that_exist(self, page: Path, generate: ModuleType) -> None:
        named = set(re.findall(r"`(lightllm_(?:gpu|otel|server)_\w+)", CODE.sub("", page.read_text())))
        assert named - {metric.name for metric in generate.METRICS} == set()


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_measured_figures_of_a_readme_stand_in_a_result(readme: Path) -> None:
    text = measured(readme)
    assert len(FIGURE.findall(text)) > 50
    assert unfounded(text, claimed()) == []


def test_measured_figures_at_length_stand_in_a_result() -> None:
    text = PAGES[1].read_text()
    assert len(FIGURE.findall(text)) > 200
    assert unfounded(text, claimed()) == []


def test_every_block_is_in_both_readmes_or_on_a_page(generate: ModuleType) -> None:
    assert blocks(READMES[0]) == blocks(READMES[1])
    everywhere = {name for path in (READMES[0], *PAGES) for name in blocks(path)}
    assert everywhere == set(generate.BLOCKS)
    assert all(len(set(blocks(path))) == len(blocks(path)) for path in (READMES[0], *PAGES))


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("1.25 µs", []),
        ("1.3 µs · 99.81 %", []),
        ("at 2 µs and 40 ms", ["2", "40"]),
        ("1.26 µs", ["1.26"]),
        ("lightllm==0.0.1, TP 1, 20 requests", []),
        ("耗时 7 µs，99.9 %", ["7", "99.9"]),
    ],
)
def test_a_figure_that_was_not_measured_is_noticed(text: str, wrong: list[str]) -> None:
    assert unfounded(text, [1.2549, 99.8084]) == wrong


def test_both_languages_have_the_same_shape() -> None:
    english, chinese = (path.read_text() for path in READMES)
    assert CODE.findall(english) == CODE.findall(chinese)
    levels = [[line.split()[0] for line in CODE.sub("", text).splitlines() if line.startswith("#")]
              for text in (english, chinese)]  # fmt: skip
    assert levels[0] == levels[1]
    assert sorted(FIGURE.findall(measured(READMES[0]))) == sorted(FIGURE.findall(measured(READMES[1])))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_have_the_outer_form(path: Path) -> None:
    content = json.loads(path.read_text())
    assert set(content) == OUTER_FORM
    assert f"{path.stem}-".startswith(content["benchmark"] + "-")  # links-again is of links.py
    assert content["summary"]
    assert content["rows"]


def test_there_are_results() -> None:
    assert RESULTS


def test_license_is_apache_for_nobody_else() -> None:
    """The text as it is published, with the placeholders in its appendix."""
    text = (ROOT / "LICENSE").read_text()
    assert "APPENDIX: How to apply the Apache License to your work." in text
    assert re.findall(r"^ *Copyright (.*)$", text, re.MULTILINE) == ["[yyyy] [name of copyright owner]"]
