"""Activation-aware weight scaling (AWQ): scale the input channels of a matrix before quantization.

Lin et al., arXiv 2306.00978. A column multiplied by a factor has a smaller quantization error, and
whatever produces its input is divided by the same factor, so that the product is unchanged and the
graph needs no extra op. A factor is the channel's root mean square on text to a fixed power. The
paper searches the power for each matrix; on SmolLM2 with GPTQ that would reduce the error by
another one or two percent.

Where factors are folded: the inputs of q, k, v and of gate and up come from a norm, whose weight is
divided; those of the down projection from `activation(gate) * up`, where the rows of up are
divided (an MLP without a gate has nothing linear there). Experts are not scaled: the norm before
them also feeds the router. The output projection is not scaled (heads
share the values, and there is no gain), and neither is the head, whose matrix may be the embedding.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.groups import groups, split_group

POWER = 0.25  # of the root mean square; best with GPTQ, while round-to-nearest prefers 0.4
_MIN_MEAN_SQUARE = (
    1e-6  # relative to the mean of all channels: a dead channel must not shrink without limit
)


@dataclass(frozen=True)
class Smoothing:
    """Scaling factors of the columns of each group, fp32 [in_features].

    norms: by group, the norm whose weight is divided by the group's factors. Factors of the down
        projections divide the rows of up instead.
    """

    factors: Mapping[str, torch.Tensor]
    norms: Mapping[str, str]

    @classmethod
    def from_mean_squares(
        cls, spec: DecoderSpec, mean_squares: Mapping[str, torch.Tensor], power: float = POWER
    ) -> "Smoothing":
        """Factors for every group whose factors can be folded.

        Args:
            spec: the decoder.
            mean_squares: of every input channel, [in_features], by group.
            power: the exponent of the root mean squares.
        """
        before = dict(_NORMS_BEFORE[spec.norms])
        if not spec.gated_mlp and before:
            before["mlp.up"] = before.pop("mlp.gate_up")
        if spec.single_sublayers:
            before["mlp.up"] = before["attention.qkv"]
        if "attention.qkv" in before:
            before |= dict.fromkeys(("conv.in", "delta.in", "mamba.in"), before["attention.qkv"])
        norms = {
            group: f"layers.{split_group(group)[0]}.{before[split_group(group)[1]]}"
            for group in groups(spec)
            if group.startswith("layers.")
            and split_group(group)[1] in before
            # What is parallel to attention reads the same norm, and has factors of its own.
            and (not _has_beside(spec, split_group(group)[0]) or ".mlp." in group)
            and not spec.shares_norm
        }
        downs = [group for group in groups(spec) if group.endswith(".mlp.down") and spec.gated_mlp]
        return cls(
            {group: factors(mean_squares[group], power) for group in [*norms, *downs]}, norms
        )

    def columns(self, group: str) -> torch.Tensor | None:
        """Factors that multiply the columns of a group's matrix, [in_features]."""
        return self.factors.get(group)

    def rows(self, group: str) -> torch.Tensor | None:
        """Factors that divide the rows of a group's matrix and its bias, [out_features]."""
        if not group.endswith("mlp.gate_up"):
            return None
        up = self.factors[group.replace("gate_up", "down")]
        return torch.cat([torch.ones_like(up), up])

    def norm(self, name: str) -> torch.Tensor | None:
        """Factors that divide a norm's weight, [hidden_size]."""
        group = next((group for group, norm in self.norms.items() if norm == name), None)
        return None if group is None else self.factors[group]


def _has_beside(spec: DecoderSpec, layer: int) -> bool:
    """Whether something beside a layer's attention has the same inputs."""
    return spec.layers[layer].beside is not None or spec.laurel_rank > 0


# The norms before q, k, v and before gate and up, by placement of norms.
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
    # Centered at one, so that scaled weights stay in the range of fp16 scales.
    return (logarithms - logarithms.mean()).exp()
