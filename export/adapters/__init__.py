"""LoRA adapters that a bundle's requests choose from: reading, writing and checking them."""
