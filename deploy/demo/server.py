"""A whole real LightLLM server as a context manager: both versions, on the CPU or on GPUs, gone when the block ends."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from command_line import chooses_nccl_port, flags, options_of, package_of

HERE = Path(__file__).resolve().parent
MARK = "LIGHTLLM_DEMO_SERVER"  # in the environment of every process of one server, however far detached


@dataclasses.dataclass(frozen=True)
class Answer:
    text: str
    token_ids: tuple[int, ...]


class ServerDied(RuntimeError):
    """The server ended, or never became healthy; the message ends with the tail of its log."""


class Server:
    """`with Server(model, "old") as server: server.generate("hello", 8)`.

    launcher goes before the interpreter (`["lightllm-otel", "run", "--"]`), arguments after ours (the last wins),
    script (node.py) takes the place of `-m lightllm.server.api_server`, and graphs leaves CUDA graphs on where a server on
    the CPU would have none.
    """

    def __init__(
        self,
        model: Path,
        version: str,
        *,
        cpu: bool = True,
        tp: int = 1,
        python: str = sys.executable,
        source: Path | None = None,
        env: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
        launcher: Sequence[str] = (),
        script: Path | None = None,
        graphs: bool = False,
        set_nccl_port: bool = False,
        port: int | None = None,
        log: Path | None = None,
        cwd: Path | None = None,
        start_timeout: float = 180,
    ) -> None:
        if version == "new" and source is None and os.environ.get("LIGHTLLM_SRC"):
            source = Path(os.environ["LIGHTLLM_SRC"])
        source = source.resolve() if source else None
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.mark = uuid.uuid4().hex
        self.log = log or model / f"server-{self.port}.log"
        self.cwd = cwd
        self.start_timeout = start_timeout
        options = options_of(package_of(python, source)) if version == "new" else {}
        # Where LightLLM finds a port itself, it does: a server with --nccl_port would not show what happens without it.
        self.nccl_port = None if chooses_nccl_port(options) and not set_nccl_port else free_port()
        self.environment = _environment(version, cpu, python, source, {**(env or {}), MARK: self.mark})
        self.command = [*launcher, python, *([str(script)] if script else ["-m", "lightllm.server.api_server"])]
        self.command += ["--model_dir", str(model), "--host", "127.0.0.1", "--port", str(self.port), "--tp", str(tp)]
        self.command += flags(version, cpu, graphs, options, self.nccl_port, free_port)
        self.command += arguments
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        """LightLLM looks for free ports long before it binds them: when another server was quicker, once more."""
        for attempt in range(3):
            self.start()
            try:
                self.wait_healthy()
            except BaseException as error:
                self.stop()
                if attempt < 2 and isinstance(error, ServerDied) and "Address already in use" in str(error):
                    continue
                raise
            break
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self) -> None:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self.command,
                env=self.environment,
                cwd=self.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_healthy(self) -> None:
        """Healthy is a server that has answered: OLD's /health is content before its model is loaded."""
        deadline = time.monotonic() + self.start_timeout
        while time.monotonic() < deadline:
            self.check_alive()
            try:
                _fetch(self.url + "/health", timeout=30)
                self.generate("a", 1, timeout=60)
            except urllib.error.HTTPError as not_yet:
                not_yet.close()
            except (OSError, http.client.HTTPException):  # refused, reset, timed out: not yet
                pass
            else:
                return
            time.sleep(0.3)
        raise ServerDied(f"not healthy after {self.start_timeout:.0f} s\n{self.log_tail()}")

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def check_alive(self) -> None:
        if not self.alive:
            status = self._process.returncode if self._process else None
            raise ServerDied(f"the server ended with status {status}: {' '.join(self.command)}\n{self.log_tail()}")

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def generate(self, prompt: str, max_new_tokens: int, timeout: float = 120, **parameters: object) -> Answer:
        """Greedy and of exactly max_new_tokens, unless the parameters say otherwise."""
        wanted = {"max_new_tokens": max_new_tokens, "do_sample": False, "ignore_eos": True, "return_details": True}
        body = json.dumps({"inputs": prompt, "parameters": {**wanted, **parameters}}).encode()
        answer = json.loads(_fetch(self.url + "/generate", body, timeout))
        text, tokens = answer["generated_text"], answer.get("tokens", [])
        if isinstance(text, list):  # one entry for each of the n best
            text, tokens = text[0], tokens[0] if tokens and isinstance(tokens[0], list) else tokens
        return Answer(text, tuple(token["id"] for token in tokens))

    def processes(self) -> list[int]:
        """Every living process of this server, an exporter that detached itself included."""
        return [pid for pid in _living() if f"{MARK}={self.mark}" in environment_of(pid)]

    def stop(self) -> None:
        """LightLLM swallows or delays SIGTERM, and a killed parent leaves its children: kill until none is left."""
        if self._process is None:
            return
        seen = set(self.processes())
        names = {name for pid in seen for name in _unique_names(pid)}
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while (left := self.processes()) and time.monotonic() < deadline:
            seen.update(left)
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        self._process.wait(timeout=20)
        # The dead do not unlink their shared memory, nor the locks by which they made it.
        for pattern in (
            f"{self.nccl_port}_*",
            *(f"{name}_*" for name in names),
            *(f"sem.loky-{pid}-*" for pid in seen),
        ):
            for leftover in [*Path("/dev/shm").glob(pattern), *Path("/tmp").glob(f"{pattern}.lock")]:
                leftover.unlink(missing_ok=True)


def free_port() -> int:
    """Below the range of outgoing connections, so that nothing takes it before the server does."""
    low = 20000 + os.getpid() % 5000
    for port in [*range(low, 28000), *range(20000, low)]:
        if port in _given:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                _given.add(port)
                return port
    raise OSError("no free port between 20000 and 28000")


_given: set[int] = set()


def environment_of(pid: int) -> list[str]:
    """NAME=VALUE strings with which the process was started; empty when it is gone, a zombie, or someone else's."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _unique_names(pid: int) -> list[str]:
    """The name by which the processes of a server find each other's shared memory."""
    start = "LIGHTLLM_UNIQUE_SERVICE_NAME_ID="
    return [variable[len(start) :] for variable in environment_of(pid) if variable.startswith(start)]


def _living() -> Iterable[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _environment(
    version: str, cpu: bool, python: str, source: Path | None, changes: Mapping[str, str]
) -> dict[str, str]:
    environment = dict(os.environ)
    # NEW starts its HTTP workers as "gunicorn" or "hypercorn"; the one beside this interpreter is meant.
    environment["PATH"] = os.pathsep.join([str(Path(python).parent), environment.get("PATH", os.defpath)])
    # A process that renames itself would do so in the place where others read its environment.
    environment.update({"TOKENIZERS_PARALLELISM": "false", "SPT_NOENV": "1", **changes})
    folders = [str(source)] if source else []
    if cpu:
        folders.append(str(HERE / "cpu"))
        environment.update({"LIGHTLLM_ON_CPU": version, "DISABLE_GPU_TENSOR_CACHE": "1"})
        # Each process would start a thread per core, and the tiny model's matrices are not worth one.
        environment.setdefault("OMP_NUM_THREADS", "1")
    if not _has_torchvision(python):
        folders.append(str(HERE / "stand_in"))
    given = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join([*folders, given] if given else folders)
    return environment


def _has_torchvision(python: str) -> bool:
    probe = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torchvision') is None)"
    return subprocess.run([python, "-c", probe], check=False).returncode == 0


def _fetch(url: str, body: bytes | None = None, timeout: float = 10) -> bytes:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        content: bytes = answer.read()
        return content
