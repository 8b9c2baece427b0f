"""``lightllm-otel exporter``: what a model process starts, or a sidecar runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lightllm_otel.exporter.main import main
from lightllm_otel.exporter.process import detach, name_process
from lightllm_otel.settings import REPORTED, Settings


def exporter(folder: Path, start_detached: bool, detached: bool) -> int:
    name_process()
    settings = Settings.from_env(os.environ)
    if REPORTED not in os.environ:  # else the server has said it
        os.environ[REPORTED] = str(os.getpid())
        for sentence in (*settings.problems, *settings.notes):
            print(f"lightllm-otel exporter: {sentence}", file=sys.stderr)
    return detach(folder) if start_detached else main(folder, settings, detached)
