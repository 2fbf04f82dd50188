"""Read checkpoints whose weights are already quantized, one file per format."""
