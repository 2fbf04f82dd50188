"""What an answer is made of: reasoning, content and calls of tools, each model family's own way."""
