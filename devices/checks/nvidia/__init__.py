"""Checks of an NVIDIA GPU and its software: driver, JetPack, CUDA code, TensorRT."""
