"""SmoothQuant: move the range of inputs into weights before both are rounded to eight bits.

Xiao et al., arXiv 2211.10438. A channel's factor is sqrt(max |X| / max |W|), so that inputs and
weights share the difficulty evenly (the paper's strength 0.5). It folds where `awq`'s factors do.
"""

from collections.abc import Callable, Mapping

import torch

from edgelm.export.quantize.weights import Weights
from edgelm.quantize.awq import Smoothing
from edgelm.quantize.precision import W8A8, WeightPrecision
from edgelm.spec.groups import EMBEDDING

_LARGEST = 127  # level
_NOISE = 0.01  # of the mean square of inputs, at most


def smooth_quant(weights: Weights, peaks: Mapping[str, torch.Tensor]) -> Smoothing:
    """Factors for every group that they can be folded for.

    Args:
        weights: the source, unfolded.
        peaks: largest magnitude of every input channel, [in_features], by the weight's name.
    """
    spread = {}
    for group in weights.groups():
        if group != EMBEDDING:
            columns = weights.matrix(group).abs().amax(0)
            spread[group] = peaks[weights.input_name(group)] / columns.clamp(min=1e-6)
    squares = {name: x**2 for name, x in spread.items()}
    return Smoothing.from_mean_squares(weights.checkpoint.spec, squares, 0.5)


def coarse_inputs(
    weights: Weights, assignment: Mapping[str, WeightPrecision], but: Callable[[str], bool]
) -> list[str]:
    """The groups of w8a8 whose inputs one int8 scale rounds too coarsely because of outliers.

    Steps of `peak / 127` leave noise of `step² / 12`; what counts is its share of the inputs' mean
    square. On SmolLM2 it is below 1% for all but ten down projections, where it is up to 240%.

    Args:
        weights: the source as it is rounded, with what calibration saw.
        assignment: a precision for every group.
        but: groups that are left out.
    """
    found = []
    for group, precision in assignment.items():
        if not isinstance(precision, W8A8) or but(group):
            continue
        energy = weights.importance(group)
        if energy is None:  # the embedding: its inputs are tokens
            continue
        noise = (weights.peak(group) / _LARGEST) ** 2 / 12
        if noise > _NOISE * float(energy.mean()):
            found.append(group)
    return found
