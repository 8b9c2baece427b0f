"""Everything that is known of LightLLM's model: its steps, graphs, operators and collectives."""
