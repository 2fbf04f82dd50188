"""Measure this machine and write its profile for the planner."""
