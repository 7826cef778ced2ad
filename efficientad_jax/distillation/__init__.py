"""Phase 1: a teacher learns the patch features of a backbone (Algorithm 3)."""
