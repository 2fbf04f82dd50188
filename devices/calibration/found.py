"""The result of a calibration."""

from typing import NamedTuple


class Found(NamedTuple):
    """Measured rates in absolute units, by precision or by cache type.

    `worst` is the largest relative error of these rates on the timed stacks themselves.
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
