"""The time of a prompt and of a token."""
