"""Quantize a matrix: formats, rounding to nearest (RTN), GPTQ, AWQ, Hessians.

`precision` imports no torch; the other modules do.
"""
