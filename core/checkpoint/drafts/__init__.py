"""Checkpoints of what drafts tokens for a model: its draft head, its assistant."""
