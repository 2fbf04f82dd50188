"""Experiments that pages of docs/ name: see README.md. Run from a checkout; not in the wheel."""
