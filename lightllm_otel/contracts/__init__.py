"""Everything that is assumed about LightLLM, as rows, and how its functions are wrapped, read by name, and put back."""
