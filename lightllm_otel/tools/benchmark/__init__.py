"""Benchmarks: the same batch again and again, a recording of each repeat, and what it ran on."""
