"""Exporter process: serves figures to Prometheus, OpenTelemetry and the live page, and records them."""
