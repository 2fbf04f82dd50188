"""Quantizing a matrix: formats, rounding to nearest, GPTQ, AWQ, Hessians."""
