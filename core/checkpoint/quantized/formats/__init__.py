"""The formats of quantized checkpoints, one file each; `READERS` in method.py lists them."""
