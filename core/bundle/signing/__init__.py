"""Signatures of bundles: the keys, what a signature covers, and `signature.json`."""
