"""Evaluation tasks, one per file, and what they share."""
