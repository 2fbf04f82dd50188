"""Speculation: tokens drafted cheaply, checked together in one run of the engine."""
