"""Markdown as a reader sees it: how much there is of it, its headings, and its links."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = {".venv", ".cache", "node_modules", ".git", ".host"}
CODE = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
HAN = re.compile(r"[\u3400-\u9fff]")
BETWEEN = re.compile(r"[\u3000-\u9fff\uff00-\uffef]")  # Chinese characters and punctuation
# Comments, pictures, tags and the fences of code are not read; of a link only its words are.
UNSEEN = re.compile(
    r"<!--.*?-->|```\w*|!\[[^\]]*\]\([^)]*\)|</?(?:picture|source|img)\b[^>]*>|(?<=\])\([^)]*\)", re.DOTALL
)


def markdown():
    """Every document of the repository."""
    return sorted(path for path in ROOT.rglob("*.md") if not SKIPPED & set(path.relative_to(ROOT).parts))


def amount(text):
    """Return how many words a reader sees in prose, tables and code; each Chinese character is one."""
    seen = UNSEEN.sub("", text)
    words = [word for word in BETWEEN.sub(" ", seen).split() if re.search(r"\w", word)]
    return len(words) + len(HAN.findall(seen))


def headings(text):
    """Return ``(level, title)`` of every heading."""
    return re.findall(r"^(#+) (.+)$", CODE.sub("", text), re.MULTILINE)


def anchors(text):
    """Return what a link may have behind its #, as GitHub makes it of headings."""
    titles = [re.sub(r"\]\([^)]*\)", "]", title) for _, title in headings(text)]
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


def links(text):
    """Return ``(path, anchor)`` of every link to another place of the repository, pictures included."""
    prose = re.sub(r"`[^`\n]*`", "", CODE.sub("", text))
    found = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", prose)
    targets = [link or source for link, source in found]
    return [target.partition("#")[::2] for target in targets if "://" not in target]
