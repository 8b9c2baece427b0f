"""Benchmarks: run the same batch several times, record each repeat, and describe the machine."""
