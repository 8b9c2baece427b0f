"""Figures in the prose of documents: where they are, and whether they say what a result says."""

import functools
import json
import re

from reading import CODE, ROOT

RESULTS = ROOT / "benchmarks" / "results"
NUMBER = r"[-+−]?\d+(?:,\d{3})*(?:\.\d+)?"
_UNITS = "%|[nµm]?s|min|minutes?|seconds?|hours?|[KMGT]i?B(?:/s)?|points?|times|W|微秒|毫秒|秒|分钟|小时|个百分点|倍"
_UNIT = rf" ?(?:{_UNITS})(?![A-Za-z])"
_ALONE = r"(?<![\w.,#/@:-])"  # neither in a name nor in a date
# A unit, a decimal point (versions have two), or at least three digits make a figure of a number.
_FIGURE = re.compile(
    rf"{_ALONE}{NUMBER}(?:(?={_UNIT})|(?<=\d{{3}})(?![\w:-]|[.,]\d))|{_ALONE}[-+−]?\d+\.\d+(?!\w|\.\d|-)"
)
# Of "25 to 61 %" both are figures.
_BEFORE = re.compile(rf"{_ALONE}({NUMBER})(?: to | and | of | or | … |, |–)$")
_YEAR = re.compile(r"20[12]\d$")
# What readers see as code, links and comments has no figures; blocks that a script makes are compared elsewhere.
_MADE = re.compile(r"<!-- (?:generated|theory|measured): \w+ -->.*?<!-- end -->", re.DOTALL)
_HIDDEN = (_MADE, CODE, re.compile(r"<!--.*?-->", re.DOTALL), re.compile(r"(?<=\])\([^)]*\)"), re.compile(r"`[^`\n]*`"))


@functools.cache
def content(name):
    """Return the content of benchmarks/results/NAME.json."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def at(name, path):
    """Return the value at ``path`` in the summary of a result. Parts of a path are divided by ``/``; a ``*`` stands for all
    keys, and makes a list of it.
    """
    return _below(content(name)["summary"], path.split("/"))


def _below(value, path):
    if not path:
        return value
    first, *rest = path
    if first == "*":
        values = value.values() if isinstance(value, dict) else value
        return [_below(each, rest) for each in values]
    return _below(value[int(first)] if isinstance(value, list) else value[first], rest)


def rows(name, **wanted):
    """Return the rows of a result that have these values."""
    return [row for row in content(name)["rows"] if all(row.get(key) == value for key, value in wanted.items())]


def column(page, block, title):
    """Return a column of numbers in a table that a script has made on a page: ``{first cell of the row: number}``."""
    text = (ROOT / page).read_text()
    table = re.search(rf"<!-- \w+: {block} -->\n(.*?)<!-- end -->", text, re.DOTALL)[1]
    head, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"
    ]
    return {line[0]: float(re.match(NUMBER, line[head.index(title)])[0]) for line in lines}


def prose(text):
    """Return a text of the same length, in which everything that is no prose is blank."""
    for pattern in _HIDDEN:
        text = pattern.sub(lambda found: "".join(each if each == "\n" else " " for each in found[0]), text)
    return text


def figures(text):
    """Return the span of each figure in the prose of a document."""
    seen = prose(text).replace("\n", " ")
    spans = set()
    for found in _FIGURE.finditer(seen):
        if _YEAR.match(found[0]):
            continue
        start = found.start()
        spans.add(found.span())
        while before := _BEFORE.search(seen, max(0, start - 20), start):
            spans.add(before.span(1))
            start = before.start(1)
    return sorted(spans)


def places(sentence, text):
    """Return the match of a piece of a sentence, wherever its lines end, at each place in a text. A ``{}`` is a number."""
    parts = [r"\s+".join(map(re.escape, part.split(" "))) for part in sentence.split("{}")]
    return list(re.finditer(f"({NUMBER})".join(parts), text))


def rounds_to(value, shown):
    """Return whether a value is the one shown, at the digits that are shown."""
    digits = len(shown.partition(".")[2])
    return abs(value - float(shown.replace("−", "-").replace(",", ""))) <= 0.5 * 10**-digits + 1e-9


def wrong(text, bound):
    """Return what is wrong with the figures of a document. ``bound``: ``(sentence, value for each {}, …)``."""
    problems = []
    for sentence, *values in bound:
        found = places(sentence, text)
        if len(found) != 1:
            problems.append(f"{sentence!r} is there {len(found)} times")
        elif len(found[0].groups()) != len(values):
            problems.append(f"{sentence!r} has {len(found[0].groups())} figures and {len(values)} values")
        else:
            shown = zip(found[0].groups(), values)
            problems += [
                f"{sentence!r}: {figure} is {value}" for figure, value in shown if not rounds_to(value, figure)
            ]
    return problems


def falsified(text, bound):
    """Yield ``(sentence, text)`` with one of the bound figures changed by 10 or 30 %, or by its last digit if that is more."""
    for sentence, *_ in bound:
        (found,) = places(sentence, text)
        for number, figure in enumerate(found.groups(), 1):
            digits = len(figure.partition(".")[2])
            value = float(figure.replace("−", "-").replace(",", ""))
            for factor in (0.7, 0.9, 1.1, 1.3):
                changed = round(value * factor, digits)
                if changed == value:
                    changed += (1 if factor > 1 else -1) * 10**-digits
                start, end = found.span(number)
                yield sentence, f"{text[:start]}{changed:.{digits}f}{text[end:]}"
