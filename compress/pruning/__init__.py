"""Importance scores, and removing heads, neurons, channels and layers."""
