"""The description of a decoder: families, layers, tensor shapes and parameter counts."""
