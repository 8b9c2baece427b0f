"""Host side of a model process: the hooks of LightLLM's steps, graphs, operators and collectives."""
