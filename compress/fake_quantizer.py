"""Train through the quantizer: weights are rounded for the pass, their masters are updated.

The straight-through estimator (Bengio et al. 2013, arXiv 1308.3432): the gradient at the rounded
weights is applied to the unrounded ones. Rounding is `edgelm.quantize`, what export rounds with,
so that the student learns the very grid that it will live on. It works on whatever part of a
matrix a process holds, because blocks lie along the input axis and shards along the other.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from edgelm.precision import Int4, Int8
from edgelm.quantize import Quantized, quantize


@dataclass(frozen=True)
class _Grid:
    """Scales and zero points [N, blocks, 1] of a matrix."""

    scales: torch.Tensor
    zeros: torch.Tensor | float
    top: int
    group_size: int

    def round(self, weight: torch.Tensor) -> torch.Tensor:
        columns = weight.shape[1]
        padded = nn.functional.pad(weight.float(), (0, -columns % self.group_size))
        blocks = padded.unflatten(1, (-1, self.group_size))
        levels = torch.round(blocks / self.scales).add_(self.zeros).clamp_(0, self.top)
        rounded = levels.sub_(self.zeros).mul_(self.scales).flatten(1)[:, :columns]
        return rounded.to(weight.dtype)


class FakeQuantizer:
    """Rounds the matrices of a model while it computes.

    Args:
        model: whose parameters are swapped; every matrix is rounded.
        precision: of the layers' matrices.
        head: of the head, and of the embedding that is tied to it; an untied embedding follows.
        energy: of input channels (`input_energy`), by which errors count, as in export; a matrix
            that is not there counts all alike.
    """

    def __init__(
        self,
        model: nn.Module,
        precision: Int4 | Int8,
        head: Int4 | Int8,
        energy: Mapping[str, torch.Tensor] = MappingProxyType({}),
    ) -> None:
        self._matrices: list[tuple[nn.Parameter, Int4 | Int8, torch.Tensor | None]] = []
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "hidden.up" not in name:
                table = "embed_tokens" in name or "lm_head" in name
                # Wrappers put their own names before the model's.
                found = next((one for key, one in energy.items() if name.endswith(key)), None)
                self._matrices.append((parameter, head if table else precision, found))
        self._grids: list[_Grid] = []

    @torch.no_grad()
    def fit(self) -> None:
        """Choose scales and zero points for the weights as they are; takes a second or more."""
        self._grids = [
            _grid(quantize(_local(parameter).float().cpu(), precision, energy), parameter.device)
            for parameter, precision, energy in self._matrices
        ]

    @contextmanager
    def rounded(self) -> Iterator[None]:
        """In this block the model computes with rounded weights; afterwards it has its own."""
        masters = [parameter.data for parameter, _, _ in self._matrices]
        try:
            for (parameter, _, _), grid in zip(self._matrices, self._grids, strict=True):
                parameter.data = _like(parameter.data, grid.round(_local(parameter)))
            yield
        finally:
            for (parameter, _, _), master in zip(self._matrices, masters, strict=True):
                parameter.data = master

    @torch.no_grad()
    def finish(self) -> None:
        """Leave the rounded weights in the model.

        They lie on their grid: `quantize` finds the same levels again (at int4 in groups of 16
        in all but one block of hundreds), so an export at this precision changes nothing.
        """
        for parameter, precision, energy in self._matrices:
            weight = _local(parameter)
            quantized = quantize(weight.float().cpu(), precision, energy)
            weight.copy_(quantized.dequantize(weight.shape[1]))


def _grid(quantized: Quantized, device: torch.device) -> _Grid:
    zeros = quantized.zero_points
    return _Grid(
        quantized.scales.float()[..., None].to(device),
        float(quantized.middle) if zeros is None else zeros.float()[..., None].to(device),
        (1 << quantized.bits) - 1,
        quantized.group_size,
    )


def _local(parameter: torch.Tensor) -> torch.Tensor:
    """Return what this process holds of a sharded parameter (FSDP2), or all of a plain one."""
    to_local = getattr(parameter, "to_local", None)
    return (to_local() if to_local else parameter).detach()


def _like(original: Any, local: torch.Tensor) -> torch.Tensor:
    if not hasattr(original, "to_local"):
        return local
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local,
        original.device_mesh,
        original.placements,
        shape=original.shape,
        stride=original.stride(),
    )
