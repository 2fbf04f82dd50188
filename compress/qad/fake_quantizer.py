"""Train through the quantizer: weights are rounded for the pass, their masters are updated.

The straight-through estimator (Bengio et al. 2013, arXiv 1308.3432): the gradient at the rounded
weights is applied to the unrounded ones. The grid, scales and zero points as export stores them,
stays what it was at the start (`qad_start`): what has been learned is which level each weight
takes, and on another grid that would be lost (at 8 bits hardly anything; there it is chosen anew
at the end). It works on whatever part of a matrix a process holds, because blocks lie along the
input axis and shards along the other.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgelm.quantize.precision import Int8
from edgelm.quantize.rtn import Quantized, quantize


@dataclass(frozen=True)
class Grid:
    """Scales fp16 and zero points uint8 of a matrix, both [N, blocks].

    zero_points: None if the middle level is the zero point everywhere.
    """

    bits: int
    group_size: int
    scales: torch.Tensor
    zero_points: torch.Tensor | None

    @classmethod
    def of(cls, quantized: Quantized, rows: slice = slice(None)) -> "Grid":
        """The grid that a matrix, or some of its rows, was quantized to."""
        zeros = quantized.zero_points
        return cls(
            quantized.bits,
            quantized.group_size,
            quantized.scales[rows].clone(),
            None if zeros is None else zeros[rows].clone(),
        )

    def to(self, parameter: torch.Tensor) -> "Grid":
        """The rows that this process holds of a parameter, on its device."""
        zeros = self.zero_points
        return Grid(
            self.bits,
            self.group_size,
            _rows_of(self.scales, parameter),
            None if zeros is None else _rows_of(zeros, parameter),
        )

    def refit(self, weight: torch.Tensor) -> "Grid":
        """The grid that export would choose for a matrix that was trained on this one."""
        if self.bits == 4:
            return self
        precision = Int8(self.group_size, symmetric=self.zero_points is None)
        return Grid.of(quantize(weight.float().cpu(), precision)).to(weight)

    def round(self, weight: torch.Tensor) -> torch.Tensor:
        """The nearest values on the grid of a matrix [N, K], in its own type."""
        columns = weight.shape[1]
        padded = nn.functional.pad(weight.float(), (0, -columns % self.group_size))
        blocks = padded.unflatten(1, (-1, self.group_size))
        middle, scales = float(1 << (self.bits - 1)), self.scales.float()[..., None]
        zeros = middle if self.zero_points is None else self.zero_points.float()[..., None]
        levels = torch.round(blocks / scales).add_(zeros).clamp_(0, (1 << self.bits) - 1)
        return levels.sub_(zeros).mul_(scales).flatten(1)[:, :columns].to(weight.dtype)


class FakeQuantizer:
    """Rounds the matrices of a model while it computes.

    Args:
        model: whose parameters are rounded in place; it may be wrapped and sharded.
        grids: of its matrices, by name; each must be found.
    """

    def __init__(self, model: nn.Module, grids: Mapping[str, Grid]) -> None:
        parameters = {_plain(name): one for name, one in model.named_parameters()}
        missing = [name for name in grids if name not in parameters]
        if missing:
            raise KeyError(f"the model has no {missing[0]}; it has e.g. {next(iter(parameters))}")
        self._matrices = [
            (parameters[name], grid.to(parameters[name])) for name, grid in grids.items()
        ]

    @contextmanager
    def rounded(self) -> Iterator[None]:
        """In this block the model computes with rounded weights; afterwards it has its own."""
        masters: list[torch.Tensor] = []
        try:
            for parameter, grid in self._matrices:
                weight = _local(parameter)
                masters.append(weight.clone())
                # In place: FSDP2 gathers from this memory, whatever tensor a parameter names.
                weight.copy_(grid.round(weight))
            yield
        finally:
            for (parameter, _), master in zip(self._matrices, masters, strict=False):
                _local(parameter).copy_(master)

    def finish(self) -> None:
        """Leave the rounded weights in the model.

        They lie on their grid: `edgelm.quantize.rtn` finds the same levels again (at int4 in groups
        of 16 in all but one block of hundreds), so an export at this precision changes nothing. At
        8 bits the grid is chosen again, as `quantize` would: it looks for no other one there.
        """
        for parameter, grid in self._matrices:
            weight = _local(parameter)
            weight.copy_(grid.refit(weight).round(weight))


def _plain(name: str) -> str:
    """A parameter's name without what wrappers put before it and in between."""
    for part in ("_checkpoint_wrapped_module.", "_orig_mod.", "module."):
        name = name.replace(part, "")
    return name.removeprefix("student.")


def _local(parameter: Any) -> torch.Tensor:
    """What this process holds of a parameter that may be sharded (FSDP2); shares its memory."""
    data: torch.Tensor = parameter.data
    return data.to_local() if hasattr(data, "to_local") else data


def _rows_of(whole: torch.Tensor, parameter: Any) -> torch.Tensor:
    """What lies beside the rows of a parameter that this process holds, of [N, blocks]."""
    if hasattr(parameter, "to_local"):
        from torch.distributed.tensor import distribute_tensor

        mesh = parameter.device_mesh
        whole = distribute_tensor(whole.to(mesh.device_type), mesh, parameter.placements).to_local()
    return whole.to(_local(parameter).device)
