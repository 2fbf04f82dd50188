"""How many snapshots of a sequence's state a session takes: see runtime.engines.recurrent_state."""

SNAPSHOTS = 4
"""Snapshots of a large state that a session holds."""
