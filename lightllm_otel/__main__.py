"""``python -m lightllm_otel …`` is ``lightllm-otel …``."""

from lightllm_otel.tools.cli import main

raise SystemExit(main())
