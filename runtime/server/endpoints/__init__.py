"""The endpoints of the OpenAI-compatible API and the fields of their requests and answers."""
