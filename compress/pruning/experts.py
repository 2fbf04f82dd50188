"""Importance of experts and of their neurons, and what remains of a layer's experts.

An expert is worth what it adds to the residual stream: the mean, over the tokens that reach it, of
the router's weight times the norm of the expert's output (REAP, Lasby et al. 2025, arXiv
2510.13999; NVIDIA's ModelOpt averages the same product). A mean, not a sum: how often an expert is
chosen says little about how well the others replace it. An expert that no token reaches has zero.

Neurons of one expert are compared with each other, by their mean magnitude over its tokens. Tokens
count by the router's weight, by which their outputs are multiplied.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgelm.compress.pruning.axes import EXPERT_PAIRS, HIDDEN, Axis
from edgelm.quantize.expert_neurons import expert_neurons
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.layers.experts import DOWN, MixtureOfExperts
from edgelm.spec.tensor_names import stored_name
from edgelm.spec.tensor_shapes import stacked_by_input


@dataclass(frozen=True)
class ExpertIndices:
    """The experts of one layer that stay, ascending, and the neurons of each [experts, size]."""

    experts: torch.Tensor
    neurons: torch.Tensor

    def of(
        self, tensor: torch.Tensor, axes: tuple[Axis, ...], channels: torch.Tensor
    ) -> torch.Tensor:
        """What remains of a stack [experts, ...], or of the biases of one.

        Args:
            tensor: of the teacher.
            axes: along each of its dimensions (edgelm.compress.pruning.axes).
            channels: of the residual stream that stay.
        """
        rows = tensor.index_select(0, self.experts.to(tensor.device))
        for dimension, axis in enumerate(axes[1:], 1):
            if axis == (HIDDEN,):
                rows = rows.index_select(dimension, channels.to(tensor.device))
                continue
            if axis == (EXPERT_PAIRS,):
                index = torch.stack([2 * self.neurons, 2 * self.neurons + 1], -1).flatten(1)
            else:
                full = tensor.shape[dimension] // len(axis)
                index = torch.cat([self.neurons + part * full for part in range(len(axis))], 1)
            # Each expert keeps neurons of its own.
            own = zip(rows, index.to(tensor.device), strict=True)
            rows = torch.stack([row.index_select(dimension - 1, kept) for row, kept in own])
        return rows


class ExpertScores:
    """Running sums over tokens for the experts of each layer."""

    def __init__(self, spec: DecoderSpec) -> None:
        self._spec = spec
        self._mixtures = {
            index: layer.mlp for index, layer in enumerate(spec.layers) if layer.mlp is not None
        }
        self._sums = {
            index: (
                torch.zeros(one.experts, dtype=torch.float64),
                torch.zeros(one.experts, dtype=torch.float64),
                torch.zeros(one.experts, one.size, dtype=torch.float64),
            )
            for index, one in self._mixtures.items()
        }

    @contextmanager
    def watching(self, model: Any) -> Iterator[None]:
        """Score the experts while the model runs in this block."""
        hooks = []
        for index in self._mixtures:
            name = stored_name(self._spec.family, f"model.layers.{index}.{DOWN}")
            module = model.get_submodule(name.rpartition(".")[0])
            hooks.append(module.register_forward_pre_hook(self._observer(index)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def experts(self) -> torch.Tensor | None:
        """Scores [layers, experts]; zero in layers without experts. None: no layer has some."""
        return self._stacked(lambda tokens, outputs, _: outputs / tokens.clamp(min=1))

    def neurons(self) -> torch.Tensor | None:
        """Scores [layers, experts, size], like `experts`."""
        return self._stacked(lambda tokens, _, neurons: neurons / tokens.clamp(min=1)[:, None])

    def _stacked(self, score: Callable[..., torch.Tensor]) -> torch.Tensor | None:
        if not self._mixtures:
            return None
        found = {index: score(*sums).float() for index, sums in self._sums.items()}
        none = torch.zeros_like(next(iter(found.values())))
        return torch.stack([found.get(index, none) for index in range(len(self._spec.layers))])

    def _observer(self, index: int) -> Callable[..., None]:
        """Runs each expert again on its tokens: experts are one module, whose results are a sum."""
        mixture, by_input = self._mixtures[index], stacked_by_input(self._spec.family)
        tokens, outputs, neurons = self._sums[index]

        def observe(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            hidden, chosen, weights = (one.flatten(0, -2) for one in arguments)
            for expert in chosen.unique().tolist():
                row, choice = torch.where(chosen == expert)
                weight = weights[row, choice].float()
                inner = expert_neurons(module, mixture, expert, hidden[row], by_input)
                output = _output(module, mixture, expert, inner, by_input).float()
                tokens[expert] += len(row)
                outputs[expert] += (weight * output.norm(dim=-1)).double().sum().cpu()
                neurons[expert] += (weight[:, None] * inner.float().abs()).sum(0).cpu().double()

        return observe


def _output(
    module: Any, mixture: MixtureOfExperts, expert: int, inner: torch.Tensor, by_input: bool
) -> torch.Tensor:
    """What one expert computes before the router's weight, [rows, hidden]."""
    matrix = module.down_proj[expert]
    output: torch.Tensor = inner @ (matrix if by_input else matrix.T)
    return output + module.down_proj_bias[expert] if mixture.biases else output
