"""The supported families: what sets each apart from a plain Llama, as the rows of a table."""
