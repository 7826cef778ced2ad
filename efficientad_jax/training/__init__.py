"""Phase 2: student and autoencoder learn the normal images (Algorithm 1, to line 34)."""
