"""Quantization-aware distillation."""
