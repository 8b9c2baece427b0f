"""Commands, and the analyses that they print."""
