"""``python -m lightllm_otel …`` is ``lightllm-otel …``."""

from lightllm_otel.cli import main

raise SystemExit(main())
