"""``lightllm-otel exporter``: the exporter process, started by a model process or by a sidecar."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lightllm_otel.exporter.main import main
from lightllm_otel.exporter.process import detach, name_process
from lightllm_otel.settings import REPORTED, Settings


def exporter(folder: Path, start_detached: bool, detached: bool) -> int:
    """Run the exporter of the group in ``folder``, or start it in the background. Return its exit status."""
    name_process()
    settings = Settings.from_env(os.environ)
    if REPORTED not in os.environ:  # else the server has printed them
        os.environ[REPORTED] = str(os.getpid())
        for sentence in (*settings.problems, *settings.notes):
            print(f"lightllm-otel exporter: {sentence}", file=sys.stderr)
    return detach(folder) if start_detached else main(folder, settings, detached)
