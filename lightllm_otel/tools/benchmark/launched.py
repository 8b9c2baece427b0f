"""Server that the benchmark starts from a command for one repeat, and ends with all of its processes."""

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
TERM_SECONDS, KILL_SECONDS = 5.0, 20.0  # most processes of LightLLM ignore SIGTERM
ATTEMPT_SECONDS = 60.0  # the first request may compile kernels
DEFAULT_PORT = 8000  # default of LightLLM
ANY_HOST = ("", "0.0.0.0", "::", "localhost")
_TAG = "LIGHTLLM_BENCH_SERVER"  # environment variable that all processes of one server inherit, even detached ones
_POLL_SECONDS = 0.3


class NoServer(RuntimeError):
    """Raised if the command does not start a server that answers; the message has the last line of its output."""


def words_of(command: str) -> list[str]:
    """Split the command of ``--serve`` into words. Raises ValueError if a shell would not accept it."""
    try:
        words = shlex.split(command)
    except ValueError as problem:
        raise ValueError(f"--serve {command!r} is not understood ({problem}): pass a command in quotes") from problem
    if not words:
        raise ValueError("--serve: pass the command that starts the server, in quotes")
    return words


def url_of(words: Sequence[str]) -> str:
    """Return the URL of the server that this command starts on this machine, from its ``--host`` and ``--port``.

    The defaults are those of LightLLM. Raises ValueError.
    """
    port, host = _option(words, "--port", str(DEFAULT_PORT)), _option(words, "--host", "")
    if not port.isdecimal():
        raise ValueError(f"--serve has --port {port}: pass a number, or pass the address of the server with --url")
    return f"http://{'127.0.0.1' if host in ANY_HOST else f'[{host}]' if ':' in host else host}:{port}"


def _option(words: Sequence[str], name: str, default: str) -> str:
    """Return the value of an option; the last one counts, as in argparse."""
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
    """Run the server inside the block.

    ``changes``: variables of its environment. ``every``: sample one decode step in so many. ``log``: file for its output. Raises
    NoServer and NoRing.
    """
    address = urllib.parse.urlsplit(url)
    if _listens(address.hostname or "127.0.0.1", address.port or DEFAULT_PORT):
        raise NoServer(f"another process already listens at {url}; end it, or pass another --port in --serve")
    tag = uuid.uuid4().hex
    log.parent.mkdir(parents=True, exist_ok=True)
    with temporary() as directory, log.open("wb") as output:
        # SPT_NOENV keeps setproctitle from overwriting the environment, which identifies the processes of this server.
        own = {
            "LIGHTLLM_OTEL": "1", "LIGHTLLM_OTEL_DIR": str(directory), "LIGHTLLM_OTEL_TARGETS": "off",
            _TAG: tag, "SPT_NOENV": "1",
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
                    f"the server has {len(groups)} groups (--dp?), but a benchmark needs exactly one: {', '.join(sorted(groups))}"
                )
            yield served.Server(url, group_of(directory, 1))
        finally:
            _end(process, tag)


def _wait(process: subprocess.Popen[bytes], server: served.Server, log: Path, seconds: float) -> None:
    """Wait until the server has answered a request. LightLLM 0.0.1 reports that it is healthy before the model is loaded.

    Raises NoServer.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise NoServer(
                f"the server exited with status {process.returncode} before it answered: {_last(log)} (full log: {log})"
            )
        try:
            server.generate("a", 1, min(ATTEMPT_SECONDS, max(end - time.monotonic(), 1.0)))
        except served.NoAnswer:
            time.sleep(_POLL_SECONDS)
        else:
            return
    raise NoServer(f"the server has not answered at {server.url} for {seconds:g} s: {_last(log)} (full log: {log})")


def _last(log: Path) -> str:
    lines = (line.strip() for line in reversed(log.read_text(errors="replace").split("\n")))
    return next((line for line in lines if line), "it wrote nothing")[:400]


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), 2.0):
            return True
    except OSError:
        return False


def _end(process: subprocess.Popen[bytes], tag: str) -> None:
    """Send SIGTERM, then SIGKILL after a grace period, because LightLLM's processes outlive their parent.

    If the benchmark is interrupted a second time meanwhile, SIGKILL is sent at once.
    """
    try:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGTERM)
        end = time.monotonic() + TERM_SECONDS
        while _processes(tag, process.pid) and time.monotonic() < end:
            process.poll()
            time.sleep(_POLL_SECONDS)
    finally:
        end = time.monotonic() + KILL_SECONDS
        while (left := _processes(tag, process.pid)) and time.monotonic() < end:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            process.poll()
            time.sleep(_POLL_SECONDS)
        with contextlib.suppress(
            subprocess.TimeoutExpired
        ):  # a process in an uninterruptible system call cannot be killed
            process.wait(KILL_SECONDS)


def _processes(tag: str, first: int) -> set[int]:
    """Return the ids of the server's living processes.

    These have the tag in their environment (a detached exporter as well), or are descendants of ``first``, or in its session.
    """
    wanted, parents, found = f"{_TAG}={tag}".encode(), {}, set()
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
