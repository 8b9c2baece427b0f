"""Data formats that processes share in memory and on disk: ring, notes, control page, recording, vocabulary."""
