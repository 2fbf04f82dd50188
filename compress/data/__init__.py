"""Reading text and conversations, and packing them into rows of tokens."""
