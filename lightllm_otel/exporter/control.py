"""Live control: a unix socket in the group's folder, for the owner only, with one line of JSON each way.

``{"level": "operators", "every": 16}`` changes what is measured; a part that is missing stays as it is. The answer is
``{"ok": true, "text": "…"}``, where ``text`` is a sentence for the user.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightllm_otel.guard import log
from lightllm_otel.parts import Parts
from lightllm_otel.records import control, private
from lightllm_otel.records.folder import is_locked, ring_path
from lightllm_otel.records.vocabulary import ExporterStage, Level
from lightllm_otel.reduce.group import Group

SOCKET = "control.sock"
PATIENCE_SECONDS = 3.0
RETRY_SECONDS = 1.0
_POLL_SECONDS = 0.05
_MOST_BYTES = 4096


class Refused(ValueError):
    """The request was refused; the message says why and what to do."""


class Controller:
    """Handler of requests: writes them to the control page and waits until every rank has confirmed."""

    def __init__(self, folder: Path, group: Group, sleep: Callable[[float], None] = time.sleep) -> None:
        self._folder = folder
        self._group = group
        self._sleep = sleep
        self._lock = threading.Lock()
        self._last: control.Order | None = None

    def handle(self, request: dict[str, Any]) -> str:
        """Follow a request and return the outcome as a sentence. Raises Refused."""
        with self._lock:
            headers = self._headers()
            now = next(iter(headers.values()))
            if self._last is not None and int(now["control_seq"]) != self._last.seq:
                level, every = self._last.level, self._last.every  # asked for, and not followed yet
            else:
                level, every = Level(Level.of(int(now["level"]))), int(now["sample_every"]) or 1
            level, every = _level(request.get("level"), level), _every(request.get("every"), every)
            page = control.ControlPage(self._folder / control.NAME)
            try:
                self._last = control.Order(page.request(level, every), level, every)
            finally:
                page.close()
            return self._outcome(self._last.seq, level, every, len(headers))

    def _headers(self) -> dict[int, Any]:
        """Return the headers of all ranks. Raises Refused unless all are on this host, where the control page is."""
        facts = self._group.facts()
        headers = {
            number: rank.header
            for number, rank in sorted(self._group.ranks.items())
            if rank.header is not None and self._is_alive(number)
        }
        if not facts or not headers:
            raise Refused("no rank of the server has come up yet; try again when it answers requests")
        if len(headers) < int(facts.get("tp", 1)):
            raise Refused(
                f"{len(headers)} of {facts.get('tp')} ranks are on this host; a group that spans hosts is controlled by "
                "its settings at start only: set LIGHTLLM_OTEL_LEVEL and LIGHTLLM_OTEL_SAMPLE_EVERY and restart it"
            )
        deaf = [number for number, header in headers.items() if not header["listening"]]
        if deaf:
            raise Refused(
                f"rank {deaf[0]} does not follow live control; see the server's log. Restart the server to change the level"
            )
        return headers

    def _is_alive(self, number: int) -> bool:
        """Return False for a ring that a rank has left behind."""
        return is_locked(ring_path(self._folder, number))

    def _outcome(self, seq: int, level: Level, every: int, ranks: int) -> str:
        what = {
            Level.OFF: "off: at the next step all patches are undone except the one that counts forwards",
            Level.STEPS: "steps: step-level only",
            Level.OPERATORS: f"operators: one decode step in {every}",
        }[level]
        for _ in range(int(PATIENCE_SECONDS / _POLL_SECONDS)):
            headers = self._headers().values()
            following = [int(header["control_at"]) for header in headers if int(header["control_seq"]) == seq]
            if len(following) == ranks:
                return f"{what}; {ranks} rank{'s' if ranks > 1 else ''}, from forward {max(following)} on"
            self._sleep(_POLL_SECONDS)
        return f"{what}; the server is idle, so the change takes effect with the next requests"


def _level(given: Any, now: Level) -> Level:
    if given is None:
        return now
    try:
        return Level(given)
    except ValueError:
        raise Refused(f"level {given!r} is not known; it is off, steps or operators") from None


def _every(given: Any, now: int) -> int:
    if given is None:
        return now
    if not isinstance(given, int) or isinstance(given, bool) or not 1 <= given < 1 << 31:
        raise Refused(f"every {given!r}: give a whole number of at least 1")
    return given


class ControlServer:
    """Server of the socket, on a thread of the exporter. The kernel says who calls; only the owner and root are served."""

    def __init__(self, folder: Path, controller: Controller, parts: Parts | None = None) -> None:
        self._controller = controller
        self._parts = parts or Parts()
        self._closed = False
        self._folder = private.open_folder(folder)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(SOCKET, dir_fd=self._folder)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(short_path(self._folder))
        os.chmod(SOCKET, 0o600, dir_fd=self._folder)
        self._socket.listen(4)
        threading.Thread(target=self._serve, daemon=True, name="control").start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError as error:
                if self._closed:
                    return
                self._parts.failed(
                    ExporterStage.CONTROL, "accept",
                    f"live control cannot accept a connection ({error}); it tries again, and nothing else is affected",
                )  # fmt: skip
                time.sleep(RETRY_SECONDS)
                continue
            with connection, self._parts(ExporterStage.CONTROL, "answer"):
                try:
                    connection.settimeout(PATIENCE_SECONDS)
                    connection.sendall(json.dumps(self._answer(connection)).encode() + b"\n")
                except OSError as error:
                    log.warning("a client of live control disconnected before it had its answer: %s", error)

    def _answer(self, connection: socket.socket) -> dict[str, Any]:
        pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if not is_owner(uid):
            return {"ok": False, "text": f"process {pid} belongs to another user"}
        try:
            request = json.loads(receive(connection))
            if not isinstance(request, dict):
                raise Refused("a request is one JSON object on a line")
            return {"ok": True, "text": self._controller.handle(request)}
        except Exception as problem:  # noqa: BLE001 - whatever a caller sends, the next one is served
            return {"ok": False, "text": str(problem) or type(problem).__name__}

    def close(self) -> None:
        self._closed = True
        self._socket.close()
        with contextlib.suppress(OSError):
            os.unlink(SOCKET, dir_fd=self._folder)
        os.close(self._folder)


def is_owner(uid: int) -> bool:
    """Return True if this user may change what the server measures: its owner, or root."""
    return uid in (os.getuid(), 0)


def short_path(folder: int) -> str:
    """Return a short path to the socket through its open folder, because the path of a socket is limited to 107 bytes."""
    return f"/proc/self/fd/{folder}/{SOCKET}"


def receive(connection: socket.socket) -> bytes:
    """Read up to the end of a line. Raises OSError if the whole line takes longer than the time-out of the connection."""
    received = b""
    deadline = time.monotonic() + (connection.gettimeout() or math.inf)
    while not received.endswith(b"\n") and len(received) < _MOST_BYTES:
        if time.monotonic() > deadline:
            raise TimeoutError("the line has no end")
        part = connection.recv(_MOST_BYTES)
        if not part:
            break
        received += part
    return received


def ask(folder: Path, request: dict[str, Any]) -> str:
    """Send a request to the exporter of this group and return its answer.

    Raises Refused, NotOurs, or OSError if nobody listens.
    """
    descriptor = private.open_folder(folder)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(PATIENCE_SECONDS + 5)
            connection.connect(short_path(descriptor))
            connection.sendall(json.dumps(request).encode() + b"\n")
            answer = json.loads(receive(connection))
    finally:
        os.close(descriptor)
    if not answer["ok"]:
        raise Refused(answer["text"])
    return str(answer["text"])
