"""Both READMEs are short, say the same, and send the reader on; they and the pages say what code and measurements say."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from reading import CODE, ROOT, amount, anchors, headings, links, markdown

READMES = {"en": ROOT / "README.md", "zh": ROOT / "README.zh-CN.md"}
PAGES = [ROOT / "docs" / f"{name}.md" for name in ("metrics", "measured", "settings", "versions")]
RULES = ROOT / "grafana" / "rules" / "alerts.yml"
RESULTS = sorted((ROOT / "benchmarks" / "results").rglob("*.json"))
OUTER_FORM = {"benchmark", "date", "gpu", "software", "commit", "command", "summary", "rows"}
WORDS = {"en": 1800, "zh": 3400}  # of Chinese: characters, and words in Latin letters
COST = re.compile(r"^## (?:Cost and accuracy|开销与精度)\n(.*?)(?=^## )", re.DOTALL | re.MULTILINE)
BLOCK = re.compile(r"<!-- generated: (\w+) -->\n(.*?)<!-- end -->", re.DOTALL)
# With a decimal point (versions have two), or with a unit. "three repetitions" and "TP 1" are no measurements.
FIGURE = re.compile(r"(?<![\w.])(\d+\.\d+(?![\w.]*\.\d)|\d+(?= ?(?:µs|ms|s|min|%)(?![a-z])))")


def languages() -> Any:
    return pytest.mark.parametrize("language", READMES)


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cost(language: str) -> str:
    found = COST.search(READMES[language].read_text())
    assert found is not None, f"{READMES[language].name} has no section on cost and accuracy"
    return found[1]


def blocks(path: Path) -> list[str]:
    return [name for name, _ in BLOCK.findall(path.read_text())]


# A short README ---------------------------------------------------------------------------------------------------------


@languages()
def test_a_readme_is_short_enough_to_be_read(language: str) -> None:
    assert amount(READMES[language].read_text()) <= WORDS[language]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("One, two.", 2),
        ("| a | `b` |\n|---|---|\n", 2),
        ("```bash\nmake demo  # now\n```", 3),
        ("[three words here](docs/long-path.md)", 3),
        ("![a picture](x.png) <!-- a comment --><img src='x'>", 0),
        ("两个 GPU，TP 2", 5),
    ],
)
def test_what_a_reader_sees_is_counted(text: str, words: int) -> None:
    assert amount(text) == words


@languages()
def test_the_demo_comes_first_then_three_commands_and_the_scrape(language: str) -> None:
    """The demo needs nothing but pip."""
    first, commands, scrape = CODE.findall(READMES[language].read_text())[:3]
    assert first.splitlines()[1:-1] == ["pip install lightllm-otel && lightllm-otel demo"]
    assert "LIGHTLLM_OTEL=1 python -m lightllm.server.api_server" in commands
    assert yaml.safe_load("\n".join(scrape.splitlines()[1:-1])).keys() == {"scrape_configs"}


@languages()
def test_every_alert_is_listed(language: str) -> None:
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    listed = re.findall(r"`(LightLLM\w+)`", READMES[language].read_text())
    assert sorted(listed) == sorted({rule["alert"] for rule in rules})


@languages()
def test_figures_of_a_readme_come_from_results(language: str) -> None:
    text = cost(language)
    assert len(FIGURE.findall(text)) > 10
    assert FIGURE.findall(BLOCK.sub("", text)) == [], "write it by docs/generate.py"


def test_both_languages_say_the_same() -> None:
    english, chinese = (path.read_text() for path in READMES.values())
    assert CODE.findall(english) == CODE.findall(chinese)
    assert [level for level, _ in headings(english)] == [level for level, _ in headings(chinese)]
    shapes = [
        [
            (bool(re.match(r"[*|]", line)), line.count("|"))
            for line in CODE.sub("", text).splitlines()
            if line[:1] in "*|"
        ]
        for text in (english, chinese)
    ]
    assert shapes[0] == shapes[1]
    assert sorted(FIGURE.findall(cost("en"))) == sorted(FIGURE.findall(cost("zh")))
    away = [{target for target in links(text) if not target[0].startswith("README")} for text in (english, chinese)]
    pictures = {target for target in away[0] ^ away[1] if target[0].startswith("docs/pictures/live-")}
    assert away[0] ^ away[1] == pictures, "a page that only one language leads to"


# Every page -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [*READMES.values(), *PAGES], ids=lambda path: path.name)
def test_generated_blocks_are_current(page: Path, generate: ModuleType) -> None:
    """Else run: python docs/generate.py"""
    text = page.read_text()
    assert generate.fill(text, "zh" if page == READMES["zh"] else "en") == text


def test_every_block_is_in_both_readmes_or_on_a_page(generate: ModuleType) -> None:
    assert blocks(READMES["en"]) == blocks(READMES["zh"])
    assert set(blocks(READMES["en"])) == set(generate.SHORT_BLOCKS)
    on_pages = [name for path in PAGES for name in blocks(path)]
    assert sorted(on_pages) == sorted(generate.BLOCKS)


@pytest.mark.parametrize("page", markdown(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for path, anchor in links(page.read_text()):
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(f"{path}#{anchor}")
    assert broken == []


def test_every_page_of_docs_is_linked_from_the_readme_or_from_a_page_that_is() -> None:
    seen, waiting = set(), [READMES["en"]]
    while waiting:
        page = waiting.pop()
        seen.add(page)
        targets = [(page.parent / path).resolve() for path, _ in links(page.read_text()) if path.endswith(".md")]
        waiting += [target for target in targets if target not in seen]
    assert [path.name for path in (ROOT / "docs").glob("*.md") if path not in seen] == []


@pytest.mark.parametrize("page", [READMES["en"], READMES["zh"], *sorted((ROOT / "docs").glob("*.md"))],
                         ids=lambda path: path.name)  # fmt: skip
def test_metrics_have_names_that_exist(page: Path, generate: ModuleType) -> None:
    named = set(re.findall(r"`(lightllm_(?:gpu|otel|server)_\w+)", CODE.sub("", page.read_text())))
    assert named - {metric.name for metric in generate.METRICS} == set()


@pytest.mark.parametrize("page", markdown(), ids=lambda path: str(path.relative_to(ROOT)))
def test_versions_of_lightllm_have_their_names(page: Path) -> None:
    """Readers do not know which LightLLM OLD and NEW are."""
    assert re.findall(r"\b(?:OLD|NEW)\b", page.read_text()) == []


# Results and the licence ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_have_the_outer_form(path: Path) -> None:
    content = json.loads(path.read_text())
    assert OUTER_FORM <= set(content) <= OUTER_FORM | {"note"}
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
