"""Shared format between processes and on disk: ring, notes, control page, recording, vocabulary."""
