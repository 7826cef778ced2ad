"""Exports detectors to files that run without this package: StableHLO, ONNX, ONNX in 8 bits."""
