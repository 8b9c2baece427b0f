"""The page on the original analysis says what `lightllm-otel theory` says."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("original_analysis", ROOT / "docs" / "original_analysis.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_tables_are_current(generator):
    """Else run: python docs/original_analysis.py"""
    text = generator.PAGE.read_text()
    assert generator.fill(text) == text


def test_every_table_is_there_once(generator):
    names = re.findall(r"<!-- theory: (\w+) -->", generator.PAGE.read_text())
    assert sorted(names) == sorted(generator.BLOCKS)


def test_what_the_text_says_of_the_tables_holds(generator):
    text = generator.PAGE.read_text()
    tables = {
        name: re.search(rf"<!-- theory: {name} -->\n(.*?)<!-- end -->", text, re.DOTALL)[1] for name in generator.BLOCKS
    }
    assert "| FLOP/s | 2.08 |" in tables["ratios"]
    assert "| memory bandwidth | 2.23 |" in tables["ratios"]
    assert "| NVLink of a card | 5.33 |" in tables["ratios"]
    assert "| as the original has it | 8 bsh² | 16 bsh² | 2 |" in tables["flops"]
    assert re.findall(r": (compute|memory)", tables["bounds"]) == ["compute", "memory"] * 3
    not_bandwidth = [int(share) for share in re.findall(r"(\d+) % \|", tables["latency"])]
    assert min(not_bandwidth) > 50, "most of a call is latency"
    prefill, decode = (float(ratio) for ratio in re.findall(r"([\d.]+) \|$", tables["link_of_two"], re.MULTILINE))
    assert decode < prefill == 1.76


def test_it_says_that_nothing_of_it_was_measured_here(generator):
    assert "What is not here yet: our own measurements." in generator.PAGE.read_text()
