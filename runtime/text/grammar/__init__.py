"""Structured output: text that matches a JSON schema, a regular expression or a grammar."""
