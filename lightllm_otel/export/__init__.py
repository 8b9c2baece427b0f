"""From aggregates to Prometheus, and the process that does it."""
