"""Recordings to answers: pure functions from measurements to values. Nothing here prints or draws."""
