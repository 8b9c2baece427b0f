"""Code of the benchmarks that runs inside LightLLM's model process, stock or instrumented."""
