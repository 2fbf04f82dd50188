"""Engines under measurement, each in a process and, for peers, an environment of its own.

These modules run with the engine's interpreter: they import nothing of edgelm but this package
(edgelm's own worker excepted).
"""
