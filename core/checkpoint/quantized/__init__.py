"""Read checkpoints whose weights are already quantized; `formats` has one file for each format."""
