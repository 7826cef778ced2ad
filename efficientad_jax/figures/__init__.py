"""The figures of the paper, drawn for other detectors: computing and drawing."""
