"""HTTP process: requests, from which the exporter makes traces."""
