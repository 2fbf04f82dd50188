"""Whether the source is read as transformers reads it: logits and chat prompts."""
