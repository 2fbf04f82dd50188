"""Text and conversations in, packed tokens out."""
