"""The paper's figures, drawn of one's own detectors and images."""
