"""Read checkpoints whose weights are already quantized, one file a format."""
