"""The ops in which engines differ: ONNX Runtime, TensorRT standard and decomposed."""
