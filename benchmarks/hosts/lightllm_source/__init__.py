"""What LightLLM's source says, without importing it: the ground of the checks in ``contract.py`` and ``hosts.py``."""
