"""The host: which attribute of LightLLM is which operator, and how to wrap it and undo that."""
