"""The factors of an adapter as the graph takes them: for the matrices that it executes.

q, k and v are one matrix there, with rows in another order and with constants folded in. The
change of a matrix `W` to `R (W + up down) C`, with `R` and `C` of rows and columns, is `(R up)`
times `(down C)`: so whatever export does to `W`, it does to both factors.
"""

from typing import NamedTuple

import torch

from edgelm.checkpoint.adapter.lora import Lora, values
from edgelm.export.adapters.switchable import changed_names
from edgelm.export.quantize.weights import Weights


class GroupFactors(NamedTuple):
    """What the graph adds to `x W^T` is `x @ down @ up`.

    down: [inputs, rank], the parts of the group side by side.
    up: [rank, outputs], with the scale; zero where a part does not change an output.
    """

    down: torch.Tensor
    up: torch.Tensor


def group_factors(lora: Lora, weights: Weights, group: str) -> GroupFactors:
    """The factors of all parts of a group, fp32.

    Raises:
        BadCheckpoint: a factor has NaN or infinite values.
    """
    outputs, _ = weights.shape(group)
    downs, ups, start = list[torch.Tensor](), list[torch.Tensor](), 0
    for name in changed_names(weights.checkpoint.spec, group):
        factors = lora.factors.get(name)
        end = outputs if name not in weights.checkpoint.shapes else start + _rows(weights, name)
        if factors is not None:
            up = values(factors.up) * factors.scale
            placed = torch.zeros(outputs, up.shape[1])
            placed[start:end] = up
            downs.append(values(factors.down))
            ups.append(placed)
        start = end
    return _executed(torch.cat(downs), torch.cat(ups, 1), weights, group)


def _rows(weights: Weights, name: str) -> int:
    return weights.checkpoint.shapes[name][0]


def _executed(down: torch.Tensor, up: torch.Tensor, weights: Weights, group: str) -> GroupFactors:
    """[rank, inputs] and [outputs, rank] with the orders and constants of `Weights.matrix`."""
    if (order := weights.row_order(group)) is not None:
        up = up[order]
    if (columns := weights.column_factors(group)) is not None:
        down = down * columns
    if (inputs := weights.inputs(group)) is not None and inputs.order is not None:
        down = down[:, inputs.order]
    if (rows := weights.row_factors(group)) is not None:
        up = up * rows[:, None]
    return GroupFactors(down.T.contiguous(), up.T.contiguous())
