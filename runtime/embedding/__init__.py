"""From texts to vectors: tokens, pooled hidden states, and the model's methods for them."""
