"""Sequences on disk: saved sessions and the prompt cache."""
