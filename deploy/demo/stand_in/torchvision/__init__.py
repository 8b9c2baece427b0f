"""LightLLM imports torchvision for its vision models; language models start without it, given these names."""
