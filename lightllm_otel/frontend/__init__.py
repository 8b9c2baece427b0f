"""HTTP process: the requests that traces are made of."""
