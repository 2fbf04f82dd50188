"""Predict memory, speed and energy of a model on a device, and choose precision and context."""
