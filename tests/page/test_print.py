"""Tests of printed reports: the PDF of Chromium, and the style for print."""

import io
import re

import browser
import pypdf
import pytest

from lightllm_otel.tools import cli

pytestmark = pytest.mark.skipif(browser.EXECUTABLE is None, reason="no Chromium here")
A4 = 703  # CSS pixels between the margins of a page of A4
BACKGROUND = "getComputedStyle(document.querySelector('{}')).backgroundColor"
WHITE = "rgb(255, 255, 255)"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert cli.main(["report", "h200-llama-7b-tp1", "--model", "llama2-7b", "--html", str(path)]) == 0
    return path.as_uri()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    started = browser.Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture
def paper(chromium, report):
    """Return the report on an A4 page, for a reader who prefers a dark scheme."""
    chromium.look(A4, scheme="dark", media="print")
    chromium.go("about:blank")
    chromium.go(report)
    chromium.wait("document.querySelectorAll('svg').length")
    yield chromium
    chromium.look()


def test_a_report_printed_to_pdf_has_its_headline_and_its_tables(chromium, report):
    chromium.look(scheme="dark")
    chromium.go(report)
    chromium.wait("document.querySelectorAll('svg').length")
    headline = chromium.evaluate("document.querySelector('h1').innerText")
    pages = pypdf.PdfReader(io.BytesIO(chromium.printed())).pages
    words = re.sub(r"\s+", " ", " ".join(page.extract_text() for page in pages))
    assert re.sub(r"\s+", " ", headline) in words
    assert "attention" in words
    assert "中文" not in words
    assert "Hover to see values" not in words
    assert 1 < len(pages) < 20


def test_paper_is_white_whatever_the_reader_likes_on_a_screen(paper):
    assert [paper.evaluate(BACKGROUND.format(each)) for each in ("body", "figure", "header")] == [WHITE] * 3
    assert paper.evaluate("getComputedStyle(document.body).color") == "rgb(27, 32, 39)"


def test_paper_has_no_buttons_and_nothing_that_sticks_to_every_page(paper):
    assert paper.evaluate("[...document.querySelectorAll('button')].every((each) => !each.getClientRects().length)")
    assert paper.evaluate("getComputedStyle(document.querySelector('header')).position") == "static"


def test_no_table_and_no_picture_is_cut_at_the_edge_of_the_paper(paper):
    wide = """[...document.querySelectorAll("table, svg, th, td")]
      .map((each) => [each.tagName, each.textContent.slice(0, 40), Math.round(each.getBoundingClientRect().right)])
      .filter(([, , right]) => right > innerWidth)"""
    assert paper.evaluate(wide) == []
    assert paper.evaluate(
        "[...document.querySelectorAll('.scroll')].every((each) => getComputedStyle(each).overflowX === 'visible')"
    )


def test_colours_that_mean_something_are_printed(paper):
    swatch = "getComputedStyle(document.querySelector('.legend i, td i')).printColorAdjust"
    assert paper.evaluate(swatch) == "exact"
