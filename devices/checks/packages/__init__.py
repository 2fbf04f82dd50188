"""Checks of installed Python packages: which ONNX Runtime, its providers and kernels, wheels."""
