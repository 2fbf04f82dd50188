"""Experiments that docs/results names. Run from a checkout; not part of the wheel."""
