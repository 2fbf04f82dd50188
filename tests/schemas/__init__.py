"""JSON schemas made from a seed, and whether answers are valid under them."""
