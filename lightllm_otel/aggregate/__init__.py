"""Records of all ranks into counters and histograms, vectorised."""
