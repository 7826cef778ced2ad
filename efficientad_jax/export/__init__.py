"""Detectors as files that run without this package: StableHLO, ONNX and ONNX in 8 bits."""
