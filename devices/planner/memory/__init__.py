"""What a model needs in memory: weights, cache, and compiling its engine."""
