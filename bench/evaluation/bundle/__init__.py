"""A bundle as what evaluation tasks ask: its backend, and processes that share requests."""
