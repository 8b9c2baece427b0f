"""Each figure in the prose of the documents says what one place of one result says, or is listed as not measured."""

import binding
import pytest
from figures import BOUND
from not_measured import COMPUTED, REASONS
from reading import ROOT

PAGES = ["README.md", "README.zh-CN.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def text_of(page):
    return (ROOT / page).read_text()


def bound_spans(page, text):
    found = [match for sentence, *_ in BOUND.get(page, ()) for match in binding.places(sentence, text)]
    return {match.span(number) for match in found for number in range(1, len(match.groups()) + 1)}


def excused(page):
    return [piece for pages in REASONS.values() for piece in pages.get(page, ())]


def unaccounted(page, text):
    """Return the figures that are neither bound nor excused, each with what is around it."""
    bound = bound_spans(page, text)
    allowed = [match.span() for piece in excused(page) for match in binding.places(piece, text)]
    return [
        " ".join(text[max(0, start - 40) : end + 20].split())
        for start, end in binding.figures(text)
        if (start, end) not in bound and not any(first <= start and end <= last for first, last in allowed)
    ]


@pytest.mark.parametrize("page", BOUND)
def test_figures_say_what_their_place_in_a_result_says(page):
    assert binding.wrong(text_of(page), BOUND[page]) == []


@pytest.mark.parametrize("page", [page for page in PAGES if page not in COMPUTED])
def test_every_other_figure_is_listed_as_not_measured(page):
    """Else bind it in figures.py, or say in not_measured.py why no result has it."""
    assert unaccounted(page, text_of(page)) == []


@pytest.mark.parametrize("page", BOUND)
def test_each_bound_figure_is_noticed_when_it_is_falsified(page):
    """By 10 and by 30 %, down and up."""
    falsified = list(binding.falsified(text_of(page), BOUND[page]))
    assert len(falsified) == 4 * sum(len(values) for _, *values in BOUND[page])
    assert [sentence for sentence, text in falsified if not binding.wrong(text, BOUND[page])] == []


def test_no_page_and_no_excuse_is_stale():
    named = {page for pages in REASONS.values() for page in pages} | set(BOUND) | set(COMPUTED)
    assert named <= set(PAGES)
    assert all((ROOT / test).exists() for test in COMPUTED.values())
    for page in PAGES:
        text = text_of(page)
        spans = binding.figures(text)
        for piece in excused(page):
            found = [match.span() for match in binding.places(piece, text)]
            assert any(first <= start and end <= last for start, end in spans for first, last in found), (page, piece)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It takes 1.25 µs, or 3 %.", ["1.25", "3"]),
        ("25 to 61 % and\n2 of 12 µs", ["25", "61", "2", "12"]),
        ("19200 tokens, 87,591 spans, 16 cases, TP 2", ["19200", "87,591"]),
        ("−1.33 % (−3.45 … 0.64)", ["−1.33", "−3.45", "0.64"]),
        ("v1.1.0, 0.0.1, July 2025, 2026-08-21, `7 µs`, 127.0.0.1, fc72ffab", []),
        ("<!-- generated: x -->\n| 9 % |\n<!-- end -->\n[a](b/3.5.md)\n```\n7 ms\n```\n", []),
        ("耗时 7 µs，99.9 %，2 秒", ["7", "99.9", "2"]),
    ],
)
def test_figures_are_found_in_prose(text, found):
    assert [text[start:end] for start, end in binding.figures(text)] == found


@pytest.mark.parametrize(
    ("value", "shown", "same"),
    [
        (0.5481, "0.55", True),
        (0.5481, "0.56", False),
        (-1.334, "−1.33", True),
        (87591.0, "87,591", True),
        (82.55, "83", True),
    ],
)
def test_a_value_is_compared_at_the_digits_that_are_shown(value, shown, same):
    assert binding.rounds_to(value, shown) is same


def test_a_new_figure_is_noticed():
    page = "docs/measured.md"
    (around,) = unaccounted(page, f"{text_of(page)}\nIt is 2.5 % quicker.\n")
    assert "It is 2.5 % quicker" in around
