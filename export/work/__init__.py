"""The folder of `--work`: intermediate results, and who may use it."""
