"""Sessions on ONNX Runtime: CPU and CUDA."""
