"""Fit the cost model to published measurements, and validate it."""
