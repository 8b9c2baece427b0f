"""Every Python process of a server: decide whether it is one of LightLLM's, and hook the modules that it imports."""
