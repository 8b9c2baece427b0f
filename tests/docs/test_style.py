"""The style of ``lightllm_otel/``: how docstrings begin, how long a file is, one meaning for each name, public words only.

``style_exceptions.txt`` holds what is still otherwise. It only shrinks: a line that no longer occurs fails the test. Run
``python tests/docs/test_style.py --shrink`` to remove such lines. ``make lint`` runs this file without arguments.
"""

import ast
import collections
import functools
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "lightllm_otel"
FIRST_WORDS = ("Of", "What", "Whether", "As")
PRIVATE_WORDS = ("seam", "twin", "harvest", "ledger")
MOST_LINES = 400
EXCEPTIONS = Path(__file__).with_name("style_exceptions.txt")  # a line for each: "file: what"


def sources():
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    return path.relative_to(PACKAGE).as_posix()


def docstrings(tree):
    """``(name, docstring)`` of the module, its classes and functions, and of attributes (a text behind an assignment)."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "name", "module"), text
        for before, after in zip(body, body[1:]) if isinstance(body, list) else ():
            if isinstance(before, (ast.Assign, ast.AnnAssign)) and isinstance(after, ast.Expr):
                target = before.targets[0] if isinstance(before, ast.Assign) else before.target
                if isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
                    yield ast.unparse(target), after.value.value


def wrong_docstrings(tree):
    begins = re.compile(rf"\s*({'|'.join(FIRST_WORDS)})\b")
    for name, text in docstrings(tree):
        if match := begins.match(text):
            yield f"docstring of {name} begins with {match[1]}"


def wrong_words(text):
    """Private words, also as parts of names (``_ledger``) and in the plural."""
    found = re.findall(rf"(?<![a-z])({'|'.join(PRIVATE_WORDS)})(?:e?s)?(?![a-z])", text.lower())
    yield from (f"word {word}" for word in sorted(set(found)))


def public_classes(tree):
    return [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]


def wrong_classes(trees):
    """``(file, what)`` of each public class whose name another file, or the same one, has as well."""
    files = collections.defaultdict(list)
    for file, tree in trees.items():
        for name in public_classes(tree):
            files[name].append(file)
    for name, where in files.items():
        if len(where) > 1:
            yield from ((file, f"class {name} is defined twice") for file in where)


@functools.lru_cache(maxsize=1)
def violations():
    """Everything that is wrong, as lines of ``style_exceptions.txt``."""
    found = collections.defaultdict(set)
    texts = {name_of(path): path.read_text() for path in sources()}
    trees = {file: ast.parse(text) for file, text in texts.items()}
    for file, text in texts.items():
        found[file].update(wrong_docstrings(trees[file]), wrong_words(text))
        if text.count("\n") > MOST_LINES:
            found[file].add(f"more than {MOST_LINES} lines")
    for file, what in wrong_classes(trees):
        found[file].add(what)
    return {f"{file}: {what}" for file, each in found.items() for what in each}


def exceptions():
    return EXCEPTIONS.read_text().splitlines() if EXCEPTIONS.exists() else []


def new_violations():
    return sorted(violations() - set(exceptions()))


def stale_exceptions():
    return sorted(set(exceptions()) - violations())


def test_the_package_keeps_to_its_style():
    assert new_violations() == []


def test_no_exception_is_kept_that_is_no_longer_needed():
    assert stale_exceptions() == []


def test_exceptions_are_sorted_and_named_once():
    assert exceptions() == sorted(set(exceptions()))


def test_the_checker_sees_what_it_should():
    tree = ast.parse(
        '"""What."""\nclass A:\n    """Offset."""\n    x = 1\n    """As it is."""\n    def f(): "Whether it is."\n'
    )
    assert sorted(wrong_docstrings(tree)) == [
        "docstring of f begins with Whether",
        "docstring of module begins with What",
        "docstring of x begins with As",
    ]
    assert list(wrong_words("seamless between, a Twin, ledgers, self._harvest")) == [
        "word harvest",
        "word ledger",
        "word twin",
    ]
    assert list(
        wrong_classes({"a.py": ast.parse("class A: ..."), "b.py": ast.parse("class A: ...\nclass _B: ...")})
    ) == [
        ("a.py", "class A is defined twice"),
        ("b.py", "class A is defined twice"),
    ]


def main(arguments):
    """Say what is wrong, or remove exceptions that no longer occur; exit status."""
    if arguments == ["--shrink"]:
        kept = sorted(set(exceptions()) & violations())
        EXCEPTIONS.write_text("".join(f"{line}\n" for line in kept))
        return 0
    for line in new_violations():
        print(f"lightllm_otel/{line}")
    for line in stale_exceptions():
        print(f"{line}: no longer so; run python tests/docs/test_style.py --shrink")
    return 1 if new_violations() or stale_exceptions() else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
