"""CUDA side of a model process: clocks, timestamp kernels, graphs, calibration and the step timer. Independent of LightLLM."""
