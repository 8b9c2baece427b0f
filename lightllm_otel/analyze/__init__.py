"""Recordings into answers: pure functions from what was measured to values. Nothing here prints or draws."""
