"""Mixtures of experts in the graph."""
