"""The time and energy of a step by arithmetic: work, coefficients, cache reads."""
