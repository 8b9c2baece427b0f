"""Files of learned baselines, one per kind of server, so that a restart does not hide a slow drift.

``FOLDER/MODEL-GPU-tpN-HASH.json`` has ``format``, ``version``, ``key`` (the kind of server) and ``buckets``. A user can pin such
a file, or the file of a run that contains one (``compare --save-baseline``). A server with a pinned file learns nothing.
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
RUN_FORMAT = "lightllm-otel baseline"  # a file of a run: its ``expectation`` is such a baseline, or null
SAVE_SECONDS = 10.0
PATIENCE_SECONDS = 2.0
MOST_CHARACTERS = 200
# Servers that differ in one of these cannot be compared. Versions are not among them: a baseline is there to compare versions.
SAME_KIND = ("model", "config", "dtype", "gpu_name", "tp", "dp", "link")
# A server that differs in one of these learns a baseline of its own.
KEY = ("model", "config", "dtype", "gpu_name", "tp", "dp", "lightllm", "torch", "cuda", "plugin", "clock")


class BadBaseline(ValueError):
    """The file is not a baseline; the message says why and what to do."""


def key_of(facts: Mapping[str, Any], link: str) -> dict[str, Any]:
    """Return the kind of server that a baseline is for."""
    return {**{name: facts.get(name, "") for name in KEY}, "link": link}


def file_name(key: Mapping[str, Any]) -> str:
    """Return the name of the file for this kind of server."""
    text = json.dumps(key, sort_keys=True, default=str)
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", f"{key['model']}-{key['gpu_name'] or 'cpu'}-tp{key['tp']}")
    return f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"


def content(key: Mapping[str, Any], planes: Mapping[Bucket, list[Plane]]) -> dict[str, Any]:
    """Return the content of a file, to be written as JSON."""
    return {"format": FORMAT, "version": VERSION, "key": dict(key), "buckets": described(planes)}


def write(path: Path, text: str) -> None:
    """Write a file completely or not at all. Several users may share the folder. Raises OSError."""
    private.make_parents(path)
    private.write(path, text.encode(), mode=0o644, foreign_folder=True)


def read(path: Path, given: bool = True) -> tuple[dict[Bucket, list[Plane]], dict[str, Any]]:
    """Return ``(planes, key)`` of a file.

    A file that a user has pinned (``given``) may belong to anybody; a learned one must belong to this user. Raises BadBaseline,
    also if there is no such file.
    """
    try:
        found = json.loads(path.read_bytes() if given else _own(path))
        if found.get("format") == RUN_FORMAT:
            found = found.get("expectation")
            if found is None:
                raise BadBaseline(
                    f"{path} is from a run that was too short to learn a baseline; record a longer run, or set "
                    "LIGHTLLM_OTEL_SAMPLE_EVERY=1, and save it again"
                )
        if found.get("format") != FORMAT or found.get("version") != VERSION:
            raise BadBaseline(
                f"{path} is not a baseline that this version can read: its format is {found.get('format')!r} "
                f"{found.get('version')}. Remove it or use another file. A server keeps its own in LIGHTLLM_OTEL_STATE, "
                "and lightllm-otel compare RUN --save-baseline FILE makes one from a recording"
            )
        return understood(found["buckets"]), dict(found["key"])
    except OSError as error:
        raise BadBaseline(f"{path} cannot be read ({error.strerror})") from error
    # A file may hold anything: 1e999, [[[[… and integers of 400 digits are the last three.
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
        if isinstance(error, BadBaseline):
            raise
        raise BadBaseline(f"{path} is damaged ({shortened(error)}); remove it or use another file") from error


def shortened(error: Exception) -> str:
    """Return the text of an error, without the whole content of the file."""
    said = repr(error)
    return said if len(said) <= MOST_CHARACTERS else f"{said[:MOST_CHARACTERS]}…"


def _own(path: Path) -> bytes:
    """Read a file of this user. Its group may be allowed to write it, as with a umask of 002."""
    return private.read(path, MOST_BYTES, foreign_folder=True, refused=stat.S_IWOTH)


class Baseline:
    """Learned baseline of one server: starts when the kind of server is known, and saves what it learns.

    ``pinned`` is a file to compare with, unchanged. ``folder`` has the learned files; None keeps the baseline in memory. An error
    is counted in ``parts`` and logged once. ``aside`` reads and writes in the background, so a folder that hangs delays a poll
    by at most :data:`PATIENCE_SECONDS`.
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
        """Start the expectation once the file has been read. Called when all ranks of this host have said what they are."""
        if self._expectation.begun:
            return
        if not self._key:
            self._key = key_of(facts, link)
            self._do(self._read)
            if self._aside is not None and not self._aside.wait(PATIENCE_SECONDS):
                self._parts.failed(
                    ExporterStage.BASELINE, "waiting",
                    f"{self._pinned or self._path} could not be read within {PATIENCE_SECONDS:g} s; "
                    "nothing is compared until it has been read",
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
                    instead = "nothing is compared" if self._pinned else "a new baseline is learned, in memory only"
                    self._parts.failed(ExporterStage.BASELINE, "reading", f"{problem}: {instead}")
                    self._folder = None
        self._planes = planes

    def _do(self, work: Callable[[], None]) -> None:
        if self._aside is not None:
            self._aside.offer(work)
        else:
            work()

    def _warn_of_another_kind(self, of: Mapping[str, Any]) -> None:
        """Warn if the pinned file is of another kind of server. The name of a learned file already contains the kind."""
        unknown = ("", None, "unknown")  # a recording knows no link
        other = [name for name in SAME_KIND if of.get(name) not in (*unknown, self._key[name])]
        if self._pinned is not None and other:
            log.warning(
                "%s is from another kind of server, which differs in %s; the slowdown is relative to that server. Use a file "
                "from LIGHTLLM_OTEL_STATE of a server of this kind",
                self._pinned, ", ".join(f"{name} ({of[name]!r}, here {self._key[name]!r})" for name in other),
            )  # fmt: skip

    def save(self, now: float) -> None:
        """Write what was learned, at most once per :data:`SAVE_SECONDS`."""
        if not self._expectation.changed or now < self._next_save or (self._aside is not None and self._aside.busy):
            return
        path = self._path
        if path is not None:
            text = json.dumps(content(self._key, self._expectation.planes)) + "\n"
            self._do(functools.partial(self._write, path, text))
        self._expectation.changed, self._next_save = False, now + SAVE_SECONDS

    def close(self) -> None:
        """Write what was learned since the last save."""
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
                    f"{path} cannot be written ({error.strerror}): the learned baseline is kept in memory only. "
                    "Set LIGHTLLM_OTEL_STATE to a folder that can be written",
                )  # fmt: skip
                self._folder = None

    @property
    def _path(self) -> Optional[Path]:
        return self._folder / file_name(self._key) if self._folder is not None and self._key else None
