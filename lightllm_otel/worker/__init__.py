"""Model process: one session, which measures the forwards of one rank."""
