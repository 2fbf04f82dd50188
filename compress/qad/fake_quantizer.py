"""Fake quantization: forward and backward use quantized weights, updates go to the masters.

The straight-through estimator (Bengio et al. 2013, arXiv 1308.3432): the gradient at the quantized
weights is applied to the unquantized masters. The grid (scales and zero points as export stores
them) stays that of the start (`edgelm.compress.qad.start`): training learns which level each
weight takes, and on another grid that would be lost. At 8 bits almost nothing would be lost; there
the grid is chosen again at the end. It works on any shard of a matrix, because blocks lie along the
input axis and shards along the other; stacked experts are sharded by expert.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgelm.quantize.precision import Int8
from edgelm.quantize.rtn import Quantized, quantize


@dataclass(frozen=True)
class Grid:
    """Scales (fp16) and zero points (uint8) of a matrix, both [N, blocks].

    Those of stacked experts are [experts, N, blocks].

    zero_points: None if the middle level is the zero point everywhere.
    by_input: experts are stored [experts, K, N].
    """

    bits: int
    group_size: int
    scales: torch.Tensor
    zero_points: torch.Tensor | None
    by_input: bool = False

    @classmethod
    def from_quantized(cls, quantized: Quantized, rows: slice = slice(None)) -> "Grid":
        """The grid that a matrix, or some of its rows, was quantized to."""
        zeros = quantized.zero_points
        return cls(
            quantized.bits,
            quantized.group_size,
            quantized.scales[rows].clone(),
            None if zeros is None else zeros[rows].clone(),
        )

    @classmethod
    def from_experts(cls, experts: Sequence[Quantized], *, by_input: bool) -> "Grid":
        """The grid of a stack, from the matrix of each expert."""
        zeros = [one.zero_points for one in experts if one.zero_points is not None]
        return cls(
            experts[0].bits,
            experts[0].group_size,
            torch.stack([one.scales for one in experts]),
            torch.stack(zeros) if zeros else None,
            by_input,
        )

    def to(self, parameter: torch.Tensor) -> "Grid":
        """The rows of the grid for this process's shard of a parameter, on its device."""
        zeros = self.zero_points
        return Grid(
            self.bits,
            self.group_size,
            _shard_like(self.scales, parameter),
            None if zeros is None else _shard_like(zeros, parameter),
            self.by_input,
        )

    def refit(self, weight: torch.Tensor) -> "Grid":
        """The grid that export would choose for a matrix trained on this one."""
        if self.bits == 4:
            return self
        precision = Int8(self.group_size, symmetric=self.zero_points is None)
        if weight.ndim == 2:
            return Grid.from_quantized(quantize(weight.float().cpu(), precision)).to(weight)
        experts = [quantize(one.float().cpu(), precision) for one in self._by_output(weight)]
        if not experts:  # another process has them
            return self
        return Grid.from_experts(experts, by_input=self.by_input).to(weight)

    def round(self, weight: torch.Tensor) -> torch.Tensor:
        """The nearest values on the grid of a matrix or of stacked experts, in its own type."""
        if weight.ndim == 2:
            return self._round(weight, self.scales, self.zero_points)
        rounded = torch.empty_like(weight)
        zeros = [None] * len(weight) if self.zero_points is None else self.zero_points
        # One expert at a time: several copies of a whole stack can be more than the model.
        for target, *one in zip(
            self._by_output(rounded), self._by_output(weight), self.scales, zeros, strict=True
        ):
            target.copy_(self._round(*one))
        return rounded

    def _by_output(self, stack: torch.Tensor) -> torch.Tensor:
        """A view of stacked experts, [experts, N, K]."""
        return stack.transpose(1, 2) if self.by_input else stack

    def _round(
        self, weight: torch.Tensor, scales: torch.Tensor, zero_points: torch.Tensor | None
    ) -> torch.Tensor:
        columns = weight.shape[1]
        padded = nn.functional.pad(weight.float(), (0, -columns % self.group_size))
        blocks = padded.unflatten(1, (-1, self.group_size))
        middle, scales = float(1 << (self.bits - 1)), scales.float()[..., None]
        zeros = middle if zero_points is None else zero_points.float()[..., None]
        levels = torch.round(blocks / scales).add_(zeros).clamp_(0, (1 << self.bits) - 1)
        return levels.sub_(zeros).mul_(scales).flatten(1)[:, :columns].to(weight.dtype)


class FakeQuantizer:
    """Quantizes the matrices of a model while it computes.

    Args:
        model: whose parameters are quantized in place; it may be wrapped and sharded.
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
    def quantized(self) -> Iterator[None]:
        """Within the context the model has quantized weights; the masters are restored after it."""
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
        """Leave the quantized weights in the model.

        They lie on their grid: `edgelm.quantize.rtn` finds the same levels again (for int4 in
        groups of 16, in all but one of hundreds of blocks), so that an export at this precision
        changes nothing. At 8 bits the grid is chosen again, as `quantize` would.
        """
        for parameter, grid in self._matrices:
            weight = _local(parameter)
            weight.copy_(grid.refit(weight).round(weight))


def _plain(name: str) -> str:
    """A parameter's name without the prefixes and infixes of wrappers."""
    for part in ("_checkpoint_wrapped_module.", "_orig_mod.", "module."):
        name = name.replace(part, "")
    return name.removeprefix("student.")


def _local(parameter: Any) -> torch.Tensor:
    """The shard of a parameter on this process (FSDP2), or all of it; shares its memory."""
    data: torch.Tensor = parameter.data
    return data.to_local() if hasattr(data, "to_local") else data


def _shard_like(full: torch.Tensor, parameter: Any) -> torch.Tensor:
    """The part of scales or zero points that belongs to this process's shard of a parameter.

    Rows of [N, blocks], or experts of [experts, N, blocks].
    """
    if hasattr(parameter, "to_local"):
        from torch.distributed.tensor import distribute_tensor

        mesh = parameter.device_mesh
        full = distribute_tensor(full.to(mesh.device_type), mesh, parameter.placements).to_local()
    return full.to(_local(parameter).device)
