"""Pure functions from what was measured to values; rendering is elsewhere."""
