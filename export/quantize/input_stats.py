"""What calibration observed of the inputs of a decoder's matrices."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from edgelm.export.quantize.weights import Weights
from edgelm.spec.groups import HEAD, TABLES


class HessianReader(Protocol):
    """Hessians of inputs by group (edgelm.quantize.hessians)."""

    def __getitem__(self, group: str, /) -> torch.Tensor:
        """[in_features, in_features]."""


@dataclass(frozen=True)
class InputStats:
    """Statistics by group, of the inputs as they are once `weights` has its scaling folded in.

    Args:
        weights: whose matrices the inputs meet.
        mean_square: of every input channel of the source, [in_features], by the name of the
            weight that it meets (see `input_name`).
        absmax: the largest magnitude of every input channel, likewise.
        hessians: of the source's inputs, where there are any.
    """

    weights: Weights
    mean_square: Mapping[str, torch.Tensor]
    absmax: Mapping[str, torch.Tensor]
    hessians: HessianReader | None = None

    def importance(self, group: str) -> torch.Tensor | None:
        """Mean square of each input channel [in_features]; None of the embedding: no inputs.

        Of stacked experts [experts, in_features]: each sees tokens of its own.
        """
        if group in TABLES:
            return None
        mean_square = self.mean_square[input_name(self.weights, group)]
        columns = self.weights.column_factors(group)
        mean_square = mean_square if columns is None else mean_square / columns.square()
        order = self._order(group)
        return mean_square if order is None else mean_square[order]

    def hessian(self, group: str) -> torch.Tensor:
        """Second moments [in_features, in_features] of what a group's matrix multiplies."""
        assert self.hessians is not None
        hessian = self.hessians[group]
        columns = self.weights.column_factors(group)
        hessian = hessian if columns is None else hessian / columns / columns[:, None]
        order = self._order(group)
        return hessian if order is None else hessian[order][:, order]

    def peak(self, group: str) -> float:
        """The largest magnitude among a group's inputs."""
        absmax = self.absmax[input_name(self.weights, group)]
        columns = self.weights.column_factors(group)
        return float((absmax if columns is None else absmax / columns).max())

    def _order(self, group: str) -> torch.Tensor | None:
        inputs = self.weights.inputs(group)
        return None if inputs is None else inputs.order


def input_name(weights: Weights, group: str) -> str:
    """The weight under whose name calibration stores what it observed of a group's inputs."""
    return "lm_head.weight" if group == HEAD else weights.tensor_names(group)[0]
