"""A real Prometheus beside the demonstration, where one is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

JOB = "lightllm-otel"


class Prometheus:
    """``url``: of its API; it ends with :meth:`stop`."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self._process = process
        self.url = url

    @classmethod
    def start(cls, folder: Path, targets: Sequence[str], port: int, every: str = "2s", jobs: Sequence[tuple[str, str]] = ()
              ) -> Optional[Prometheus]:  # fmt: skip
        """Scrapes ``targets`` into ``folder``, and ``jobs``, each (name, target). None where there is no prometheus in PATH."""
        program = shutil.which("prometheus")
        if program is None:
            return None
        scrapes = [(JOB, list(targets)), *((name, [target]) for name, target in jobs)]
        config = {
            "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
            "scrape_configs": [{"job_name": name, "static_configs": [{"targets": each}]} for name, each in scrapes],
        }
        path = folder / "prometheus.yml"
        path.write_text(json.dumps(config))  # JSON is YAML
        command = [
            program,
            f"--config.file={path}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with (folder / "prometheus.log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return cls(process, f"http://127.0.0.1:{port}")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)
