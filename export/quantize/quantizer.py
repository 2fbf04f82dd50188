"""Rounds a checkpoint's matrices by one method, each only once."""

from collections.abc import Callable

import torch

from edgelm.export.cache import Kept
from edgelm.export.quantize.float_formats import Nvfp4Blocks, to_fp8, to_nvfp4
from edgelm.export.quantize.methods import METHODS, Method, Moments, quantize_by
from edgelm.export.quantize.weights import Weights
from edgelm.export.source.memory import LARGE, give_back
from edgelm.quantize.gptq import Compensation
from edgelm.quantize.precision import Int4, Int8, describe
from edgelm.quantize.rtn import Quantized
from edgelm.spec.groups import EMBEDDING


class Quantizer:
    """What a dialect asks for quantized matrices.

    Args:
        weights: the source.
        method: how to round.
        kept: for results that will be asked for again: rounding takes a second a matrix, reading
            it back takes none. Nothing is kept where it is None.
        positive_scales: see `edgelm.quantize.rtn.quantize`.
    """

    def __init__(
        self,
        weights: Weights,
        method: Method = METHODS["rtn"],
        *,
        kept: Kept | None = None,
        positive_scales: bool = False,
    ) -> None:
        self.weights = weights
        self.method = method
        self.kept = kept
        self.positive_scales = positive_scales

    def __call__(
        self, group: str, matrix: Callable[[], torch.Tensor], precision: Int4 | Int8
    ) -> Quantized:
        """A group's matrix, quantized; it is read only if that was not done before."""

        def find() -> dict[str, torch.Tensor]:
            quantized = quantize_by(
                self.method,
                _read(matrix),
                precision,
                self.weights.importance(group),
                self._moments(group),
                positive_scales=self.positive_scales,
            )
            return {name: one for name, one in vars(quantized).items() if torch.is_tensor(one)}

        found = self._found(f"{group} {self.grid(precision)}", find)
        bits = 4 if isinstance(precision, Int4) else 8
        return Quantized(
            bits,
            precision.group_size,
            found["levels"],
            found["scales"],
            found.get("zero_points"),
        )

    def fp8(
        self, group: str, matrix: Callable[[], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """E4M3 values [N, K] and scales [N] of a group's matrix."""

        def find() -> dict[str, torch.Tensor]:
            values, scales = to_fp8(_read(matrix), self._compensation(group))
            return {"values": values, "scales": scales}

        found = self._found(f"{group} fp8", find)
        return found["values"], found["scales"]

    def nvfp4(self, group: str, matrix: Callable[[], torch.Tensor]) -> Nvfp4Blocks:
        """A group's matrix in NVFP4."""

        def find() -> dict[str, torch.Tensor]:
            importance = self.weights.importance(group) if self.method.weighs else None
            return to_nvfp4(_read(matrix), importance, self._compensation(group))._asdict()

        return Nvfp4Blocks(**self._found(f"{group} nvfp4", find))

    def grid(self, precision: Int4 | Int8) -> str:
        """What levels a matrix is rounded to, in words."""
        positive = self.positive_scales and precision.symmetric
        return describe(precision) + (", positive scales" if positive else "")

    def rounded(self, group: str, precision: Int4 | Int8) -> dict[str, torch.Tensor]:
        """The checkpoint's tensors of a group, fp32, as they would be for what is stored."""
        weights = self.weights
        quantized = self(group, lambda: weights.matrix(group), precision)
        return weights.stored(group, quantized.dequantize(weights.columns(group)))

    def _found(
        self, name: str, find: Callable[[], dict[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        return find() if self.kept is None else self.kept.tensors(name, find)

    def _moments(self, group: str) -> Moments | None:
        if group == EMBEDDING or self.weights.moments is None:
            return None
        return lambda: self.weights.second_moments(group)

    def _compensation(self, group: str) -> Compensation | None:
        moments = self._moments(group)
        return Compensation(moments()) if self.method.compensates and moments else None


def _read(matrix: Callable[[], torch.Tensor]) -> torch.Tensor:
    read = matrix()
    if read.numel() > LARGE:
        give_back()  # what the matrix before this one left
    return read
