"""``lightllm-otel exporter``: what a model process starts, or a sidecar runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lightllm_otel.export.exporter import main
from lightllm_otel.export.process import detach, name_process
from lightllm_otel.settings import Settings


def exporter(folder: Path, start_detached: bool, detached: bool) -> int:
    name_process()
    settings = Settings.from_env(os.environ)
    for problem in settings.problems:
        print(f"lightllm-otel exporter: {problem}", file=sys.stderr)
    if settings.problems:
        return 1
    return detach(folder) if start_detached else main(folder, settings, detached)
