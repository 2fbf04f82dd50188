"""What the engine of ONNX Runtime's CPU provider consists of."""
