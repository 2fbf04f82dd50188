"""Trim tokenizer and embeddings to what a text uses."""
