"""Where a version of LightLLM comes from: a checkout, an installed package, or a commit of a clone."""

from __future__ import annotations

import collections
import importlib.machinery
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lightllm_source.syntax import Module, parse
from lightllm_source.tree import Tree

PACKAGE = "lightllm"
MOST_MODULES = 3000  # of a history, in memory: a version has fewer than a thousand


class NoSource(Exception):
    """There is no LightLLM to look at; the message says what to do."""


def of_folder(folder: Path) -> Tree:
    """Return the version in a checkout, or in the folder of packages that it is installed in."""
    package = folder / PACKAGE
    if not (package / "__init__.py").is_file():
        raise NoSource(f"{folder} has no {PACKAGE}/__init__.py: give the folder of a LightLLM checkout")
    paths = {path.relative_to(folder).as_posix(): str(path) for path in package.rglob("*.py")}
    return Tree(paths, lambda path: parse(Path(path).read_text(errors="replace")))


def installed() -> Path | None:
    """Return the folder of packages that LightLLM is installed in, without importing it; None where it is not."""
    found = importlib.machinery.PathFinder.find_spec(PACKAGE, sys.path)
    return Path(found.origin).parents[1] if found is not None and found.origin else None


class Commit(NamedTuple):
    """``name``: 40 hex digits. ``date``: of the commit, as yyyy-mm-dd."""

    name: str
    date: str
    subject: str = ""


class Clone:
    """A bare or ordinary clone. Files are read and parsed once, whatever versions they are in."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._modules: collections.OrderedDict[str, Module] = collections.OrderedDict()
        self._reader: subprocess.Popen[bytes] | None = None
        try:
            self._git("rev-parse", "--git-dir")
        except (OSError, subprocess.CalledProcessError) as problem:
            raise NoSource(f"{folder} is not a clone of LightLLM: give the folder of a git repository") from problem

    def commit(self, revision: str) -> Commit:
        """Return what a branch, tag or part of a hash names; a branch may be that of the place it was cloned from."""
        for name in (revision, f"origin/{revision}"):
            try:
                found = self._git("log", "-1", "--format=%H %cs %s", name, "--").split(" ", 2)
            except subprocess.CalledProcessError:
                continue
            return Commit(found[0], found[1], found[2].strip())
        raise NoSource(f"{self._folder} has no {revision}: fetch all branches and tags of LightLLM's repository")

    def since(self, first: str, last: str) -> Iterator[Commit]:
        """Yield the commits from ``first`` to ``last``, both included, oldest first."""
        yield self.commit(first)
        for line in self._git("log", "--reverse", "--format=%H %cs %s", f"{first}..{last}", "--").splitlines():
            yield Commit(*line.split(" ", 2))

    def tree(self, commit: Commit) -> Tree:
        """Return the version that a commit has."""
        listed = self._git("ls-tree", "-r", "--full-tree", "-z", commit.name, f"{PACKAGE}/")
        entries = (entry.split("\t", 1) for entry in listed.split("\0") if entry)
        return Tree({path: about.split()[2] for about, path in entries if path.endswith(".py")}, self._module)

    def _module(self, blob: str) -> Module:
        module = self._modules.pop(blob, None) or parse(self._read(blob))
        self._modules[blob] = module
        if len(self._modules) > MOST_MODULES:
            self._modules.popitem(last=False)
        return module

    def _read(self, blob: str) -> str:
        if self._reader is None:
            command = ["git", "-C", str(self._folder), "cat-file", "--batch"]
            self._reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._reader.stdin is not None
        assert self._reader.stdout is not None
        self._reader.stdin.write(f"{blob}\n".encode())
        self._reader.stdin.flush()
        head = self._reader.stdout.readline().split()
        if len(head) != 3:
            raise NoSource(f"{self._folder} has not all files of its history (no blob {blob}): fetch them")
        content = self._reader.stdout.read(int(head[2]))
        self._reader.stdout.read(1)
        return content.decode(errors="replace")

    def close(self) -> None:
        """End the git process that reads files."""
        if self._reader is not None:
            self._reader.communicate()
            self._reader = None

    def _git(self, *words: str) -> str:
        command = ["git", "-C", str(self._folder), *words]
        return subprocess.run(command, capture_output=True, check=True, text=True, errors="replace").stdout
