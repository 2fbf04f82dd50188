"""From logits to the next token: transforms, the sampler, and processors of the caller."""
