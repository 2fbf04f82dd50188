"""Sessions on ONNX Runtime, CUDA and TensorRT; compiling and trusting engines."""
