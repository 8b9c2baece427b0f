"""``lightllm-otel exporter``: what a model process starts, or a sidecar runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lightllm_otel.export.exporter import main
from lightllm_otel.settings import Settings


def exporter(folder: Path, background: bool) -> int:
    settings = Settings.from_env(os.environ)
    for problem in settings.problems:
        print(f"lightllm-otel exporter: {problem}", file=sys.stderr)
    return 1 if settings.problems else main(folder, settings, background)
