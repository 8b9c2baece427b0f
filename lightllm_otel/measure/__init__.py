"""Time: clocks, steps, sampling. Knows nothing of the host."""
