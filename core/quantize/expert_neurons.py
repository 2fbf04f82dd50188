"""The neurons of one expert of a mixture, which transformers computes inside one module."""

from typing import Any

import torch

from edgelm.spec.layers.experts import MixtureOfExperts


def expert_neurons(
    module: Any, mixture: MixtureOfExperts, expert: int, rows: torch.Tensor, by_input: bool
) -> torch.Tensor:
    """The inputs of an expert's down projection, [rows, size].

    Args:
        module: of transformers, with the stacked matrices of all experts.
        mixture: what it is.
        expert: which one.
        rows: inputs of the expert, [rows, hidden].
        by_input: whether the matrices are stored [input, output] (`stacked_by_input`).
    """
    matrix = module.gate_up_proj[expert]
    products = rows @ (matrix if by_input else matrix.T)
    if mixture.biases:
        products = products + module.gate_up_proj_bias[expert]
    gate, up = (products[:, ::2], products[:, 1::2]) if by_input else products.chunk(2, -1)
    if mixture.limit is not None:
        gate, up = gate.clamp(max=mixture.limit), up.clamp(-mixture.limit, mixture.limit)
    inner: torch.Tensor = gate * torch.sigmoid(mixture.alpha * gate) * (up + mixture.beta)
    return inner
