"""Exporter process: from figures to Prometheus, OpenTelemetry, the live page and recordings."""
