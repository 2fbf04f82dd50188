"""Synthetic data: text sampled from the teacher, filtered and deduplicated."""
