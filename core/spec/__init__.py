"""What a decoder is: families, layers, shapes and counts."""
