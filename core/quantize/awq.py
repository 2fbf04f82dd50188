"""Activation-aware scaling: even out the input channels of a matrix before it is rounded.

Lin et al., arXiv 2306.00978. A column multiplied by a factor is rounded in finer steps of its own,
and whatever produces that input is divided by the same factor, so that the product stays what it
was and the graph has no op for it. The factors are the channel's root mean square on text to a
fixed power. The paper searches the power of each matrix; on SmolLM2 that would take another
percent or two off the error beside GPTQ.

Where factors fold: the inputs of q, k, v and of gate and up come out of a norm, whose weight takes
them; those of the down projection out of `activation(gate) * up`, where the rows of up take them.
The output projection is left alone (heads share the values, whose range the cache's scale is made
for, and nothing is gained), and so is the head, whose matrix the embedding may share.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from edgelm.spec.decoder import DecoderSpec

POWER = 0.25  # of the root mean square; best beside GPTQ, where plain rounding would like 0.4
_MIN_MEAN_SQUARE = (
    1e-6  # relative to the mean of all channels: a dead channel must not shrink without limit
)


@dataclass(frozen=True)
class Smoothing:
    """Factors fp32 [in_features] that columns of a group are multiplied by, by group.

    norms: the norm whose weight is divided by a group's factors, by the group's name. Factors of
        the down projections divide the rows of up instead.
    """

    factors: Mapping[str, torch.Tensor]
    norms: Mapping[str, str]

    @classmethod
    def from_mean_squares(
        cls, spec: DecoderSpec, mean_squares: Mapping[str, torch.Tensor], power: float = POWER
    ) -> "Smoothing":
        """Factors for every group that they can be folded for.

        Args:
            spec: the decoder.
            mean_squares: of every input channel, [in_features], by group.
            power: of their roots.
        """
        before = _NORMS_BEFORE[spec.norms]
        norms = {
            f"layers.{layer}.{part}": f"layers.{layer}.{norm}"
            for layer in range(spec.num_hidden_layers)
            for part, norm in before.items()
        }
        downs = [f"layers.{layer}.mlp.down" for layer in range(spec.num_hidden_layers)]
        return cls(
            {group: factors(mean_squares[group], power) for group in [*norms, *downs]}, norms
        )

    def columns(self, group: str) -> torch.Tensor | None:
        """What the columns of a group's matrix are multiplied by, [in_features]."""
        return self.factors.get(group)

    def rows(self, group: str) -> torch.Tensor | None:
        """What the rows of a group's matrix, and its bias, are divided by, [out_features]."""
        if not group.endswith("mlp.gate_up"):
            return None
        up = self.factors[group.replace("gate_up", "down")]
        return torch.cat([torch.ones_like(up), up])

    def norm(self, name: str) -> torch.Tensor | None:
        """What a norm's weight is divided by, [hidden_size]."""
        group = next((group for group, norm in self.norms.items() if norm == name), None)
        return None if group is None else self.factors[group]


# What stands before q, k, v and before gate and up, by where a layer has its norms.
_NORMS_BEFORE: dict[str, dict[str, str]] = {
    "pre": {
        "attention.qkv": "input_layernorm",
        "mlp.gate_up": "post_attention_layernorm",
    },
    "sandwich": {
        "attention.qkv": "input_layernorm",
        "mlp.gate_up": "pre_feedforward_layernorm",
    },
    "post": {},
}


def factors(mean_square: torch.Tensor, power: float = POWER) -> torch.Tensor:
    """Factors [in_features] from mean squares, with a geometric mean of one."""
    floor = _MIN_MEAN_SQUARE * float(mean_square.mean()) or 1.0
    logarithms = mean_square.float().clamp(min=floor).log() * (power / 2)
    # Around one, so that scaled weights stay in the range of fp16 scales.
    return (logarithms - logarithms.mean()).exp()
