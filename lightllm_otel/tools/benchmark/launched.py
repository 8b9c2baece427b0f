"""A server of the benchmark's own, from a command: started for one repeat, asked, and ended with all of its processes."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import time
import urllib.parse
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lightllm_otel.records.folder import RING_PATTERN
from lightllm_otel.tools.benchmark import served
from lightllm_otel.tools.benchmark.static import group_of, temporary

START_SECONDS = 1800.0  # a large model from a slow disk
TERM_SECONDS, KILL_SECONDS = 5.0, 20.0  # LightLLM's processes swallow SIGTERM, most of them
ATTEMPT_SECONDS = 60.0  # a first request may have to compile kernels
DEFAULT_PORT = 8000  # LightLLM's own
ANY_HOST = ("", "0.0.0.0", "::", "localhost")
_MARK = "LIGHTLLM_BENCH_SERVER"  # in the environment of every process of one server, however far detached
_POLL_SECONDS = 0.3


class NoServer(RuntimeError):
    """The command did not become a server that answers; the message has the end of what it wrote."""


def words_of(command: str) -> list[str]:
    """Raises ValueError for what no shell would take."""
    try:
        words = shlex.split(command)
    except ValueError as problem:
        raise ValueError(f"--serve {command!r} is not understood ({problem}): give a command in quotes") from problem
    if not words:
        raise ValueError("--serve: give the command that starts the server, in quotes")
    return words


def url_of(words: Sequence[str]) -> str:
    """Where the server of this command listens, if on this machine: its ``--host`` and ``--port``, or LightLLM's defaults."""
    port, host = _option(words, "--port", str(DEFAULT_PORT)), _option(words, "--host", "")
    if not port.isdecimal():
        raise ValueError(f"--serve has --port {port}: give a number, or say with --url where it listens")
    return f"http://{'127.0.0.1' if host in ANY_HOST else f'[{host}]' if ':' in host else host}:{port}"


def _option(words: Sequence[str], name: str, default: str) -> str:
    """The last one counts, as for argparse."""
    found = default
    for word, following in zip(words, [*words[1:], ""]):
        if word == name:
            found = following
        elif word.startswith(f"{name}="):
            found = word.partition("=")[2]
    return found


@contextlib.contextmanager
def running(
    words: Sequence[str],
    url: str,
    changes: Mapping[str, str],
    every: int | None,
    log: Path,
    start_seconds: float = START_SECONDS,
) -> Iterator[served.Server]:
    """``changes``: of its environment. ``log``: a file for what it writes. Raises NoServer and NoRing."""
    address = urllib.parse.urlsplit(url)
    if _listens(address.hostname or "127.0.0.1", address.port or DEFAULT_PORT):
        raise NoServer(f"something listens at {url} already; end it, or give another --port in --serve")
    mark = uuid.uuid4().hex
    log.parent.mkdir(parents=True, exist_ok=True)
    with temporary() as directory, log.open("wb") as output:
        # The last one: a process that gives itself a title would write it over the environment by which we know it.
        own = {
            "LIGHTLLM_OTEL": "1", "LIGHTLLM_OTEL_DIR": str(directory), "LIGHTLLM_OTEL_TARGETS": "off",
            _MARK: mark, "SPT_NOENV": "1",
        }  # fmt: skip
        if every is not None:
            own["LIGHTLLM_OTEL_SAMPLE_EVERY"] = str(every)
        try:
            process = subprocess.Popen(
                words, env={**os.environ, **own, **changes}, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        except OSError as problem:
            raise NoServer(f"--serve cannot be started: {words[0]}: {problem.strerror}") from problem
        try:
            _wait(process, served.Server(url, directory), log, start_seconds)
            groups = {path.parent.name for path in directory.glob(f"*/{RING_PATTERN}")}
            if len(groups) > 1:
                raise NoServer(
                    f"the server has {len(groups)} groups (--dp?), and a benchmark is of one: {', '.join(sorted(groups))}"
                )
            yield served.Server(url, group_of(directory, 1))
        finally:
            _end(process, mark)


def _wait(process: subprocess.Popen[bytes], server: served.Server, log: Path, seconds: float) -> None:
    """Until it has answered a request: an older LightLLM calls itself healthy before its model is loaded."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise NoServer(
                f"the server ended with status {process.returncode} before it answered: {_last(log)} (all of it: {log})"
            )
        try:
            server.generate("a", 1, min(ATTEMPT_SECONDS, max(end - time.monotonic(), 1.0)))
        except served.NoAnswer:
            time.sleep(_POLL_SECONDS)
        else:
            return
    raise NoServer(f"the server has not answered at {server.url} for {seconds:g} s: {_last(log)} (all of it: {log})")


def _last(log: Path) -> str:
    lines = (line.strip() for line in reversed(log.read_text(errors="replace").split("\n")))
    return next((line for line in lines if line), "it wrote nothing")[:400]


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), 2.0):
            return True
    except OSError:
        return False


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """As it likes; with force after a while, because LightLLM's processes outlive the one that started them. Whoever ends the
    benchmark a second time meanwhile has it with force at once.
    """
    try:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGTERM)
        end = time.monotonic() + TERM_SECONDS
        while _processes(mark, process.pid) and time.monotonic() < end:
            process.poll()
            time.sleep(_POLL_SECONDS)
    finally:
        end = time.monotonic() + KILL_SECONDS
        while (left := _processes(mark, process.pid)) and time.monotonic() < end:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            process.poll()
            time.sleep(_POLL_SECONDS)
        with contextlib.suppress(subprocess.TimeoutExpired):  # one in the kernel's hands: nothing more can be done
            process.wait(KILL_SECONDS)


def _processes(mark: str, first: int) -> set[int]:
    """The living ones with this mark, an exporter that detached itself included; what ``first`` has started, and its session."""
    wanted, parents, found = f"{_MARK}={mark}".encode(), {}, set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            pid, state = int(entry.name), (entry / "stat").read_text().rpartition(")")[2].split()
            if state[0] == "Z":
                continue
            parents[pid] = int(state[1])
            if int(state[3]) == first or wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.add(pid)
    for pid in parents:
        above = pid
        while above in parents and above != first:
            above = parents[above]
        if above == first:
            found.add(pid)
    return found - {os.getpid()}
