"""Bundles of embedding models: their graphs, and how near their vectors are to the source's."""
