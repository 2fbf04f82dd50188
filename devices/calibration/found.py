"""What calibration found."""

from typing import NamedTuple


class Found(NamedTuple):
    """Rates in absolute units, by precision or by type of the cache.

    `worst` is the largest relative error with which these rates explain the stacks themselves.
    """

    read_gb_s: float
    weights_gb_s: dict[str, float]
    cache_gb_s: dict[str, float]
    matrices_tflops: dict[str, float]
    attention_tflops: float
    layer_us: float
    prompt_layer_us: float
    step_us: float
    worst: float
