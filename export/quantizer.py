"""Rounds a checkpoint's matrices by one method, each only once."""

from collections.abc import Callable
from pathlib import Path

import torch

from edgelm.export.heap import LARGE, give_back
from edgelm.export.methods import METHODS, Method, quantize_by
from edgelm.export.weights import Weights
from edgelm.groups import EMBEDDING
from edgelm.precision import Int4, Int8, describe
from edgelm.quantize import Quantized


class Quantizer:
    """What a dialect asks for quantized matrices.

    Args:
        weights: the source.
        method: how to round.
        scratch: a folder for results that a later graph will ask for again: rounding takes a
            second a matrix, reading it back takes none. Nothing is kept where it is None.
        positive_scales: see `edgelm.quantize.quantize`.
    """

    def __init__(
        self,
        weights: Weights,
        method: Method = METHODS["rtn"],
        *,
        scratch: Path | None = None,
        positive_scales: bool = False,
    ) -> None:
        self.weights = weights
        self.method = method
        self.scratch = scratch
        self.positive_scales = positive_scales

    def __call__(
        self, group: str, matrix: Callable[[], torch.Tensor], precision: Int4 | Int8
    ) -> Quantized:
        """A group's matrix, quantized; it is read only if that was not done before."""
        if self.scratch is None:
            return self._quantize(group, matrix(), precision)
        path = self.scratch / f"{group} {describe(precision)}.pt"
        if path.is_file():
            return Quantized(**torch.load(path, weights_only=True))
        quantized = self._quantize(group, matrix(), precision)
        torch.save(vars(quantized), path)
        return quantized

    def _quantize(self, group: str, matrix: torch.Tensor, precision: Int4 | Int8) -> Quantized:
        weights = self.weights
        if matrix.numel() > LARGE:
            give_back()  # what the matrix before this one left
        known = group != EMBEDDING and weights.moments is not None
        return quantize_by(
            self.method,
            matrix,
            precision,
            weights.importance(group),
            (lambda: weights.second_moments(group)) if known else None,
            positive_scales=self.positive_scales,
        )
