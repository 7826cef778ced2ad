"""What the same networks cost here, in PyTorch, in ONNX Runtime and in OpenVINO."""
