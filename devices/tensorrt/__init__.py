"""Compiling graphs with TensorRT and TensorRT-RTX: one code path, one table of differences."""
