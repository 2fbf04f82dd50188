"""Kills at random moments, and what else goes wrong around files."""
