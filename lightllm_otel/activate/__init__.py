"""Start in every process that LightLLM starts: import hooks, and what they install."""
