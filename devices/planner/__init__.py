"""What a model costs on a device, and whether it fits."""
