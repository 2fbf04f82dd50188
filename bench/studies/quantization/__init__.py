"""How far quantized models are from their source."""
