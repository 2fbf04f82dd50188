"""Identify this machine and its software."""
