"""TensorRT and TensorRT-RTX: compiling graphs, opening engines, running them."""
