"""Dashboards of lightllm-otel as code; for development, not installed."""
