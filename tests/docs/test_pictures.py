"""The pictures are made from results, and are those that are there."""

import importlib.util
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def decode_step():
    spec = importlib.util.spec_from_file_location("decode_step", ROOT / "docs" / "decode_step.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_decode_step_is_current(decode_step):
    """Else run: python docs/decode_step.py"""
    assert decode_step.draw(json.loads(decode_step.RESULT.read_text())) == decode_step.PICTURE.read_text()


def test_its_bar_is_the_step_and_every_operator_is_named(decode_step):
    result = json.loads(decode_step.RESULT.read_text())
    parts = decode_step.parts(result)
    picture = ElementTree.fromstring(decode_step.draw(result))
    bars = [rect for rect in picture.iter(f"{SVG}rect") if rect.find(f"{SVG}title") is not None]
    widths = [float(rect.get("width")) for rect in bars]
    assert len(bars) == len(parts)
    assert sum(widths) == pytest.approx(decode_step.WIDTH - 2 * decode_step.MARGIN, rel=0.01)
    assert widths[0] / sum(widths) == pytest.approx(next(iter(parts.values())) / sum(parts.values()), rel=0.01)
    words = " ".join(text.text for text in picture.iter(f"{SVG}text"))
    assert all(operator in words for operator in parts)
