"""Write checkpoints whose weights are quantized, in the layouts of their makers.

Each layout is packed here value by value, from its definition, and not with edgelm's code.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.checkpoints.weight_folders import Tensors, edit_config, store, tensors_of

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def compressed(**weights: Any) -> dict[str, Any]:
    """A configuration of compressed-tensors with one group."""
    form = weights.pop("format", "pack-quantized")
    group = {"targets": ["Linear"], "weights": weights}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


@dataclass(frozen=True)
class Grid:
    """Levels [N, K], scales [N, G] and zero points [N, G]; `order` is the group of each column."""

    bits: int
    levels: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    order: torch.Tensor

    @property
    def matrix(self) -> torch.Tensor:
        """What the levels stand for, fp32."""
        steps = self.levels - self.zeros[:, self.order]
        return steps.float() * self.scales.float()[:, self.order]


def random_grid(
    weight: torch.Tensor,
    *,
    bits: int = 4,
    group_size: int = 32,
    symmetric: bool = False,
    act_order: bool = False,
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
) -> Grid:
    """A random grid of the shape and about the size of a weight."""
    generator = torch.Generator().manual_seed(seed + weight.numel())
    rows, columns = weight.shape
    groups = -(-columns // group_size)
    top = 2**bits
    levels = torch.randint(0, top, (rows, columns), generator=generator)
    zeros = torch.randint(1, top, (rows, groups), generator=generator)
    zeros = torch.full_like(zeros, top // 2) if symmetric else zeros
    scales = (torch.rand(rows, groups, generator=generator) + 0.5) / top
    order = torch.arange(columns) // group_size
    if act_order:
        order = order[torch.randperm(columns, generator=generator)]
    return Grid(bits, levels, scales.to(dtype), zeros, order)


def words(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Each row of values [rows, count] as a stream of bits in int32 words."""
    rows, count = values.shape
    packed = np.zeros((rows, -(-count * bits // 32)), dtype=np.uint64)
    for index in range(count):
        word, shift = divmod(index * bits, 32)
        value = values[:, index].numpy().astype(np.uint64) << np.uint64(shift)
        packed[:, word] |= value & np.uint64(0xFFFFFFFF)
        if shift + bits > 32:
            packed[:, word + 1] |= value >> np.uint64(32)
    return torch.from_numpy(packed.astype(np.uint32).view(np.int32))


def awq_parts(grid: Grid) -> Tensors:
    """AutoAWQ, GEMM."""

    def interleaved(values: torch.Tensor) -> torch.Tensor:
        return words(values.unflatten(1, (-1, 8))[..., list(AWQ_ORDER)].flatten(1), 4)

    return {
        "qweight": interleaved(grid.levels.T),
        "qzeros": interleaved(grid.zeros.T),
        "scales": grid.scales.T,
    }


def gptq_parts(grid: Grid, *, version: int = 1) -> Tensors:
    """AutoGPTQ and GPTQModel."""
    zeros = (grid.zeros - int(version == 1)) % 2**grid.bits
    return {
        "qweight": words(grid.levels, grid.bits).T,
        "qzeros": words(zeros.T, grid.bits),
        "scales": grid.scales.T,
        "g_idx": grid.order.int(),
    }


def packed_parts(grid: Grid, *, symmetric: bool, act_order: bool = False) -> Tensors:
    """compressed-tensors, pack-quantized."""
    parts = {
        "weight_packed": words(grid.levels, grid.bits),
        "weight_scale": grid.scales,
        "weight_shape": torch.tensor(grid.levels.shape),
    }
    if not symmetric:
        parts["weight_zero_point"] = words(grid.zeros.T, grid.bits).T
    if act_order:
        parts["weight_g_idx"] = grid.order.int()
    return parts


def modelopt_int4_parts(grid: Grid) -> Tensors:
    """ModelOpt's INT4 AWQ: two rows in a byte, in two's complement."""
    signed = (grid.levels - 8) & 0xF
    return {
        "weight": (signed[::2] | signed[1::2] << 4).to(torch.uint8),
        "weight_scale": grid.scales.float(),
    }


@dataclass(frozen=True)
class Fp4:
    """E2M1 codes [N, K], the scales of blocks of 16, and that of the matrix."""

    codes: torch.Tensor
    scales: torch.Tensor
    scale: torch.Tensor

    @property
    def matrix(self) -> torch.Tensor:
        """What the codes stand for, fp32."""
        signed = torch.tensor([*FP4, *(-one for one in FP4)])[self.codes]
        return signed * (self.scales.float() * self.scale).repeat_interleave(16, 1)

    @property
    def packed(self) -> torch.Tensor:
        """Two codes in a byte, the even column in the low half."""
        return (self.codes[:, ::2] | self.codes[:, 1::2] << 4).to(torch.uint8)


def random_fp4(weight: torch.Tensor, *, seed: int = 0) -> Fp4:
    """Random NVFP4 of the shape and about the size of a weight."""
    generator = torch.Generator().manual_seed(seed + weight.numel())
    rows, columns = weight.shape
    codes = torch.randint(0, 16, (rows, columns), generator=generator)
    scales = 8 + 64 * torch.rand(rows, columns // 16, generator=generator)
    return Fp4(codes, scales.to(torch.float8_e4m3fn), torch.tensor(2.0**-9))


def replace_matrices(
    folder: Path,
    parts: Callable[[str, torch.Tensor], Mapping[str, torch.Tensor]],
    quantization: Mapping[str, Any] | None = None,
    *,
    only: str = "model.layers.",
) -> None:
    """Store every matrix of the layers of a folder in parts, and say so in config.json."""
    tensors: Tensors = {}
    for name, tensor in tensors_of(folder).items():
        if tensor.ndim == 2 and name.startswith(only):
            module = name.removesuffix(".weight")
            tensors |= {f"{module}.{part}": one for part, one in parts(module, tensor).items()}
        else:
            tensors[name] = tensor
    store(folder, tensors)
    if quantization is not None:
        edit_config(folder, quantization_config=dict(quantization))


def write_json(path: Path, value: Any) -> None:
    """A JSON file."""
    path.write_text(json.dumps(value), encoding="utf-8")
