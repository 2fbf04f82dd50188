"""Evaluation tasks, one per file or folder, and what they share."""
