"""SmoothQuant: move the range of inputs into weights before both are rounded to eight bits.

Xiao et al., arXiv 2211.10438. A channel's factor is sqrt(max |X| / max |W|), so that inputs and
weights share the difficulty evenly (the paper's strength 0.5). It folds where `awq`'s factors do.
"""

from collections.abc import Mapping

import torch

from edgelm.awq import Smoothing
from edgelm.export.weights import Weights
from edgelm.groups import EMBEDDING


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
    return Smoothing.of(weights.checkpoint.spec, {name: x**2 for name, x in spread.items()}, 0.5)
