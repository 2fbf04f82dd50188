"""SmoothQuant: move the range of inputs into weights before both are rounded to eight bits.

Xiao et al., arXiv 2211.10438. A channel's factor is sqrt(max |X| / max |W|), so that inputs and
weights share the difficulty evenly (the paper's strength 0.5). It folds where `awq`'s factors do.
"""

from collections.abc import Callable, Mapping

import torch

from edgelm.export.quantize.input_stats import InputStats, input_name
from edgelm.export.quantize.weights import Weights
from edgelm.quantize.awq import Smoothing
from edgelm.quantize.precision import W8A8, WeightPrecision
from edgelm.spec.groups import TABLES

_MAX_LEVEL = 127
_MAX_NOISE = 0.01  # of the mean square of inputs


def smooth_quant(weights: Weights, absmax: Mapping[str, torch.Tensor]) -> Smoothing:
    """Factors for every group that they can be folded for.

    Args:
        weights: the source, unfolded.
        absmax: largest magnitude of every input channel, [in_features], by the weight's name.
    """
    spread = {}
    for group in weights.groups():
        if group not in TABLES:
            columns = weights.matrix(group).abs().amax(0)
            spread[group] = absmax[input_name(weights, group)] / columns.clamp(min=1e-6)
    squares = {name: x**2 for name, x in spread.items()}
    return Smoothing.from_mean_squares(weights.checkpoint.spec, squares, 0.5)


def outlier_groups(
    stats: InputStats, assignment: Mapping[str, WeightPrecision], exclude: Callable[[str], bool]
) -> list[str]:
    """The groups of w8a8 whose inputs one int8 scale rounds too coarsely because of outliers.

    Steps of `peak / 127` leave noise of `step² / 12`; what counts is its share of the inputs' mean
    square. On SmolLM2 it is below 1% for all but ten down projections, where it is up to 240%.

    Args:
        stats: of the inputs as the graph has them.
        assignment: a precision for every group.
        exclude: groups that are left out.
    """
    found = []
    for group, precision in assignment.items():
        if not isinstance(precision, W8A8) or exclude(group):
            continue
        mean_square = stats.importance(group)
        if mean_square is None:  # the embedding: its inputs are tokens
            continue
        noise = (stats.peak(group) / _MAX_LEVEL) ** 2 / 12
        if noise > _MAX_NOISE * float(mean_square.mean()):
            found.append(group)
    return found
