"""Vocabulary trimming: tokenizer and embeddings shrink to the tokens that a corpus uses."""
