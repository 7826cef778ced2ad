"""Phase 3 and Algorithm 2: calibration, and all that a detector at work needs."""
