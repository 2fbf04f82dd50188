"""Quantization-aware distillation: training through the quantizer that export uses."""
