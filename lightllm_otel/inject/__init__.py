"""Activation: runs in every Python process of a server, and hooks LightLLM's modules when the process imports them."""
