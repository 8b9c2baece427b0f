"""Everything that is known of CUDA: clocks, timestamp kernels, graphs, calibration, the step timer. Knows nothing of LightLLM."""
