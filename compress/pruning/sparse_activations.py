"""How many gates a pruned MLP with sparse activations sets to zero.

Gemma 3n subtracts a cutoff from the gates of a layer and drops what is below it: their mean plus
as many standard deviations as the normal quantile of the layer's share says. Both are over the
layer's neurons. Without the pruned neurons, which are the least active ones, the cutoff would
mostly be higher than the teacher's, and would drop gates that the teacher keeps. The student gets
the share with which its cutoff is the teacher's, on average over calibration text. For a single
token the two still differ: in these layers, a student is not exactly the teacher with the pruned
neurons masked.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import torch

_NORMAL = NormalDist()
_LEAST, _MOST = 1e-6, 1 - 1e-6  # with a share of zero, nothing would be subtracted from the gates


def keep_cutoffs(
    config: Any, gates: Sequence[torch.Tensor], neurons: Sequence[torch.Tensor]
) -> None:
    """Set the shares of dropped gates in a student's configuration.

    Args:
        config: with the teacher's shares, for the student's layers.
        gates: for each of its layers, mean and mean square of the teacher's gates [2, neurons].
        neurons: for each of its layers, the neurons that are kept.
    """
    shares = config.activation_sparsity_pattern
    config.activation_sparsity_pattern = [
        share_with_cutoff(share, moments, kept) if share else share
        for share, moments, kept in zip(shares, gates, neurons, strict=True)
    ]


def share_with_cutoff(share: float, gates: torch.Tensor, kept: torch.Tensor) -> float:
    """The share of gates to drop, with which the cutoff stays where it was.

    Args:
        share: of the teacher's gates that are dropped if they are normally distributed.
        gates: mean and mean square of each of the teacher's gates over tokens, [2, neurons].
        kept: indices of the neurons that stay.
    """
    if len(kept) == gates.shape[1]:
        return share
    mean, deviation = _spread(gates)
    mean_of_kept, deviation_of_kept = _spread(gates[:, kept])
    if not deviation_of_kept:
        return share
    cutoff = mean + _NORMAL.inv_cdf(share) * deviation
    return min(max(_NORMAL.cdf((cutoff - mean_of_kept) / deviation_of_kept), _LEAST), _MOST)


def _spread(gates: torch.Tensor) -> tuple[float, float]:
    """Mean and standard deviation over neurons and tokens."""
    mean, square = gates.double().mean(1).tolist()
    return mean, max(0.0, square - mean**2) ** 0.5
