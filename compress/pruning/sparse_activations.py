"""How many gates a pruned MLP with sparse activations sets to zero.

Gemma 3n subtracts a cutoff from the gates of a layer and drops what is below it: their mean plus
as many standard deviations as the normal quantile of the layer's share says. Both are over the
layer's neurons. The least active ones are pruned, so that the cutoff over the others would be
higher than the teacher's, and would drop gates that the teacher keeps. The student's share is
therefore lowered by as much as its neurons are more active than the teacher's, on calibration text.
The mean and the deviation themselves still differ: in these layers, a student is not exactly the
teacher with the pruned neurons masked.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import torch

_NORMAL = NormalDist()
_LEAST, _MOST = 1e-3, 1 - 1e-6  # zero would mean that nothing is subtracted from the gates


def with_active_neurons(
    config: Any, active: Sequence[torch.Tensor], neurons: Sequence[torch.Tensor]
) -> None:
    """Set the shares of dropped gates in a student's configuration.

    Args:
        config: with the teacher's shares, for the student's layers.
        active: for each of its layers, how often each of the teacher's neurons is not zero.
        neurons: for each of its layers, the neurons that are kept.
    """
    config.activation_sparsity_pattern = [
        kept_share(share, often, kept) if share else share
        for share, often, kept in zip(
            config.activation_sparsity_pattern, active, neurons, strict=True
        )
    ]


def kept_share(share: float, active: torch.Tensor, kept: torch.Tensor) -> float:
    """The share of gates to drop, so that the kept neurons are as active as in the teacher.

    Args:
        share: of the teacher's gates that are dropped if they are normally distributed.
        active: share of tokens for which each of the teacher's neurons is not zero.
        kept: indices of the neurons that stay.
    """
    if len(kept) == len(active):
        return share
    # As quantiles: gates that are not normally distributed keep their distance from the nominal share.
    shift = _quantile(1 - float(active[kept].mean())) - _quantile(1 - float(active.mean()))
    return min(max(_NORMAL.cdf(_quantile(share) + shift), _LEAST), _MOST)


def _quantile(share: float) -> float:
    return _NORMAL.inv_cdf(min(max(share, _LEAST), _MOST))
