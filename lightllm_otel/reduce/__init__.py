"""Records of all ranks to figures, vectorised; the same live and offline."""
