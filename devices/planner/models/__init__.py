"""Known model shapes: which of them run on a device, and smaller ones to suggest."""
