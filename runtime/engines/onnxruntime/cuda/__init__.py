"""What the engine of ONNX Runtime's CUDA provider consists of."""
