"""Where expectations are kept: a file per kind of server, so that a restart, or a slow drift, does not begin anew.

``FOLDER/MODEL-GPU-tpN-HASH.json`` has ``format``, ``version``, ``key`` (what the expectation is of) and ``buckets``. A file of
the same form can be given as a baseline, or one of a run, which has it inside (``compare --save-baseline``). Then nothing
is learned.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Optional

from lightllm_otel.exporter.background import Aside
from lightllm_otel.guard import log
from lightllm_otel.parts import Parts
from lightllm_otel.records import private
from lightllm_otel.records.vocabulary import ExporterStage
from lightllm_otel.reduce.expectation import Bucket, Expectation, Plane, described, understood

MOST_BYTES = 64 << 20
FORMAT, VERSION = "lightllm-otel expectation", 1
RUN_FORMAT = "lightllm-otel baseline"  # of a file that has one of these as its ``expectation``, or null
SAVE_SECONDS = 10.0
PATIENCE_SECONDS = 2.0
MOST_CHARACTERS = 200
# What makes times another matter; versions are what a baseline is there to be compared over.
SAME_KIND = ("model", "config", "dtype", "gpu_name", "tp", "dp", "link")
# A server with another of these is another kind of server, and learns an expectation of its own.
KEY = ("model", "config", "dtype", "gpu_name", "tp", "dp", "lightllm", "torch", "cuda", "plugin", "clock")


class BadBaseline(ValueError):
    """Not a file of expectations; the message says what and what to do."""


def key_of(facts: Mapping[str, Any], link: str) -> dict[str, Any]:
    return {**{name: facts.get(name, "") for name in KEY}, "link": link}


def file_name(key: Mapping[str, Any]) -> str:
    text = json.dumps(key, sort_keys=True, default=str)
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", f"{key['model']}-{key['gpu_name'] or 'cpu'}-tp{key['tp']}")
    return f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"


def content(key: Mapping[str, Any], planes: Mapping[Bucket, list[Plane]]) -> dict[str, Any]:
    return {"format": FORMAT, "version": VERSION, "key": dict(key), "buckets": described(planes)}


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all. The folder may be one that several users share. Raises OSError."""
    private.make_parents(path)
    private.write(path, text.encode(), mode=0o644, foreign_folder=True)


def read(path: Path, given: bool = True) -> tuple[dict[Bucket, list[Plane]], dict[str, Any]]:
    """``(planes, key)``. ``given``: by a person, who may give anybody's; one that was learned must be ours.

    Raises BadBaseline, also for a file that is not there.
    """
    try:
        found = json.loads(path.read_bytes() if given else _own(path))
        if found.get("format") == RUN_FORMAT:
            found = found.get("expectation")
            if found is None:
                raise BadBaseline(
                    f"{path} is of a run that was too short to say what operators should take; record a longer one, or with "
                    "LIGHTLLM_OTEL_SAMPLE_EVERY=1, and save it again"
                )
        if found.get("format") != FORMAT or found.get("version") != VERSION:
            raise BadBaseline(
                f"{path} is no file of expectations that this version reads, its format is {found.get('format')!r} "
                f"{found.get('version')}; remove it, or use another one: a server keeps its own in LIGHTLLM_OTEL_STATE, "
                "and lightllm-otel compare RUN --save-baseline FILE makes one of a recording"
            )
        return understood(found["buckets"]), dict(found["key"])
    except OSError as error:
        raise BadBaseline(f"{path} cannot be read ({error.strerror})") from error
    # A file may hold anything: 1e999, [[[[… and integers of 400 digits are the last three.
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
        if isinstance(error, BadBaseline):
            raise
        raise BadBaseline(f"{path} is damaged ({shortened(error)}); remove it, or use another one") from error


def shortened(error: Exception) -> str:
    """Return what went wrong, without the whole of what was read."""
    said = repr(error)
    return said if len(said) <= MOST_CHARACTERS else f"{said[:MOST_CHARACTERS]}…"


def _own(path: Path) -> bytes:
    """A group may write it: with a umask of 002 files of ours are so."""
    return private.read(path, MOST_BYTES, foreign_folder=True, refused=stat.S_IWOTH)


class Baseline:
    """Begins an expectation when it is known what kind of server this is, and saves what it learns.

    ``pinned``: a file that is compared with as it is. ``folder``: where learned ones lie; None keeps them in memory only.
    What cannot be read or written is counted in ``parts``, and one line in the log. With ``aside`` files are read and written
    there, and a folder that hangs keeps nobody waiting for longer than :data:`PATIENCE_SECONDS`.
    """

    def __init__(
        self,
        expectation: Expectation,
        folder: Optional[Path],
        pinned: Optional[Path],
        parts: Optional[Parts] = None,
        aside: Optional[Aside] = None,
    ) -> None:
        self._parts = parts or Parts()
        self._aside = aside
        self._expectation = expectation
        self._folder = folder
        self._pinned = pinned
        self._key: dict[str, Any] = {}
        self._planes: Optional[dict[Bucket, list[Plane]]] = None
        self._next_save = 0.0

    def begin(self, facts: Mapping[str, Any], link: str) -> None:
        """Begin, as soon as the file has been read: all ranks that can be seen here have said what they are."""
        if self._expectation.begun:
            return
        if not self._key:
            self._key = key_of(facts, link)
            self._do(self._read)
            if self._aside is not None and not self._aside.wait(PATIENCE_SECONDS):
                self._parts.failed(
                    ExporterStage.BASELINE, "waiting",
                    f"{self._pinned or self._path} is not read after {PATIENCE_SECONDS:g} s; nothing is compared before it is",
                )  # fmt: skip
        if self._planes is not None:
            self._expectation.begin(self._planes, learns=self._pinned is None, ranks=int(facts.get("tp", 1)))

    def _read(self) -> None:
        planes: dict[Bucket, list[Plane]] = {}
        path = self._pinned or self._path
        with self._parts(ExporterStage.BASELINE, "reading"):
            if path is not None and (self._pinned is not None or path.exists()):
                try:
                    planes, of = read(path, given=self._pinned is not None)
                    self._warn_of_another_kind(of)
                except BadBaseline as problem:
                    instead = "nothing is compared" if self._pinned else "it is learned anew, in memory only"
                    self._parts.failed(ExporterStage.BASELINE, "reading", f"{problem}: {instead}")
                    self._folder = None
        self._planes = planes

    def _do(self, work: Callable[[], None]) -> None:
        if self._aside is not None:
            self._aside.offer(work)
        else:
            work()

    def _warn_of_another_kind(self, of: Mapping[str, Any]) -> None:
        """Of a pinned file only: the others' names are made from the same key."""
        unknown = ("", None, "unknown")  # a recording knows no link
        other = [name for name in SAME_KIND if of.get(name) not in (*unknown, self._key[name])]
        if self._pinned is not None and other:
            log.warning(
                "%s is of another kind of server, in %s: slowdown is against that one. Its like has one in LIGHTLLM_OTEL_STATE",
                self._pinned, ", ".join(f"{name} ({of[name]!r}, here {self._key[name]!r})" for name in other),
            )  # fmt: skip

    def save(self, now: float) -> None:
        """Write what was learned since the last time, if that is some seconds ago."""
        if not self._expectation.changed or now < self._next_save or (self._aside is not None and self._aside.busy):
            return
        path = self._path
        if path is not None:
            text = json.dumps(content(self._key, self._expectation.planes)) + "\n"
            self._do(functools.partial(self._write, path, text))
        self._expectation.changed, self._next_save = False, now + SAVE_SECONDS

    def close(self) -> None:
        """Write the rest."""
        if self._aside is not None:
            self._aside.wait(PATIENCE_SECONDS)
        self.save(math.inf)
        if self._aside is not None:
            self._aside.wait(PATIENCE_SECONDS)

    def _write(self, path: Path, text: str) -> None:
        with self._parts(ExporterStage.BASELINE, "writing"):
            try:
                write(path, text)
            except OSError as error:
                self._parts.failed(
                    ExporterStage.BASELINE, "writing",
                    f"{path} cannot be written ({error.strerror}): what operators should take is kept in memory only. "
                    "Set LIGHTLLM_OTEL_STATE to a folder that can",
                )  # fmt: skip
                self._folder = None

    @property
    def _path(self) -> Optional[Path]:
        return self._folder / file_name(self._key) if self._folder is not None and self._key else None
