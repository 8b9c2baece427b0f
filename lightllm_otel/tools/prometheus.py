"""Prometheus server that the demonstration starts, if one is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

JOB = "lightllm-otel"
START_SECONDS = 60.0


class NoPrometheus(Exception):
    """Raised if Prometheus is not installed or does not start; the message is a sentence for the user."""


class Prometheus:
    """Running Prometheus server. ``url``: its API. End it with :meth:`stop`."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self._process = process
        self.url = url

    @classmethod
    def start(
        cls, folder: Path, targets: Sequence[str], port: int, every: str = "2s", jobs: Sequence[tuple[str, str]] = ()
    ) -> Prometheus:
        """Start a server and wait until it is ready.

        It scrapes ``targets``, and ``jobs`` as pairs of name and target, and stores its data in ``folder``. Raises NoPrometheus.
        """
        program = shutil.which("prometheus")
        if program is None:
            raise NoPrometheus("there is no prometheus in PATH; install it (Debian's package is called prometheus)")
        scrapes = [(JOB, list(targets)), *((name, [target]) for name, target in jobs)]
        config = {
            "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
            "scrape_configs": [{"job_name": name, "static_configs": [{"targets": each}]} for name, each in scrapes],
        }
        path, log = folder / "prometheus.yml", folder / "prometheus.log"
        path.write_text(json.dumps(config))  # JSON is YAML
        command = [program, f"--config.file={path}", f"--storage.tsdb.path={folder / 'data'}"]
        command.append(f"--web.listen-address=127.0.0.1:{port}")
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        found = cls(process, f"http://127.0.0.1:{port}")
        try:
            found.wait_ready(log)
        except BaseException:
            found.stop()
            raise
        return found

    def wait_ready(self, log: Path) -> None:
        """Wait until this server is ready. Another server at the port would answer, too, so this one must be alive.

        Raises NoPrometheus.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            time.sleep(0.2)
            if self._process.poll() is not None:
                last = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise NoPrometheus(f"prometheus exited: {' '.join(last)}")
            try:
                with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as answer:
                    ready = answer.status == 200
            except OSError:
                continue
            if ready and self._listens(log):
                return
        raise NoPrometheus(f"prometheus was not ready after {START_SECONDS:.0f} s")

    @staticmethod
    def _listens(log: Path) -> bool:
        """Return whether its log says that it is ready, in versions 2.x and 3.x."""
        return "Server is ready to receive web requests" in log.read_text(errors="replace")

    def stop(self) -> None:
        """End the server and wait for it."""
        self._process.terminate()
        self._process.wait(timeout=30)
