"""A teacher's MLP with some of its neurons."""

import copy
from typing import Any

import torch
from torch import nn

from edgelm.checkpoint.own_modules import half_name
from edgelm.compress.model import Model
from edgelm.compress.pruning.axes import FFN, tensor_axes
from edgelm.compress.pruning.refit import refitted
from edgelm.spec.decoder import DecoderSpec


def narrow_mlp(
    model: Model,
    spec: DecoderSpec,
    layer: int,
    neurons: torch.Tensor,
    moments: torch.Tensor | None = None,
) -> nn.Module:
    """A copy of a layer's MLP with these neurons, in fp32; the others are refitted to.

    Args:
        model: of transformers; not changed.
        spec: of the model.
        layer: index.
        neurons: ascending indices of those that remain.
        moments: second moments of the output projection's inputs (see `refitted`).
    """
    name = half_name(spec, layer, "mlp")
    mlp: Any = copy.deepcopy(model.get_submodule(name)).float()
    for module, linear in list(mlp.named_modules()):
        if not isinstance(linear, nn.Linear):
            continue
        axes = tensor_axes(spec, f"{name}.{module}.weight")
        weight = linear.weight.detach()
        if axes[1] == (FFN,) and moments is not None:
            weight = refitted(weight, moments, neurons)
        elif axes[1] == (FFN,):
            weight = weight.index_select(1, neurons.to(weight.device))
        rows = _rows(axes[0], neurons.to(weight.device), spec.intermediate_size)
        weight = weight if rows is None else weight.index_select(0, rows)
        narrow = nn.Linear(weight.shape[1], weight.shape[0], bias=linear.bias is not None)
        narrow.weight = nn.Parameter(weight.clone())
        if linear.bias is not None:
            bias = linear.bias.detach()
            narrow.bias = nn.Parameter((bias if rows is None else bias[rows]).clone())
        parent, _, own = module.rpartition(".")
        setattr(mlp.get_submodule(parent), own, narrow)
    return mlp.requires_grad_(True)  # type: ignore[no-any-return]


def _rows(axis: tuple[str, ...], neurons: torch.Tensor, size: int) -> torch.Tensor | None:
    """Rows of a matrix of which `axis` is the first one; None for all."""
    if FFN not in axis:
        return None
    return torch.cat([neurons + part * size for part in range(len(axis))])
