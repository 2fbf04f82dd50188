"""How llama.cpp's converter lays out tensors and keys of hybrids and mixtures of experts."""
