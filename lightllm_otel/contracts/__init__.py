"""Contracts with LightLLM: all assumptions about it as rows of a table, and how its functions are wrapped and restored."""
