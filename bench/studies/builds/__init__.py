"""What exports and compilers need: memory, time, sizes, for many devices and large models."""
