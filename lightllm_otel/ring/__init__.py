"""What a model process leaves in memory for the exporter: fixed records in a mapped file per rank."""
