"""GPU time of every operator of a LightLLM server; importing this package does nothing."""

__version__ = "0.1.0"
