"""Which values: weights, calibration, rounding methods, scales."""
