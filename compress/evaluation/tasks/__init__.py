"""What a model is judged on: one task a file, and what they share."""
