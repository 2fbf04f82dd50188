"""How far the exported graph is from its source."""
