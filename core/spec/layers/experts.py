"""Mixtures of experts: what a layer has in place of one feed-forward network.

A router scores the experts for each token; the `top_k` best ones run, and their outputs are added
with the router's weights. Like a mixer (edgelm.spec.layers.mixers), the record knows its matrices
and its other tensors. Matrices of all experts are stacked, and a stack is one group of precision.
"""

import math
from typing import Literal

import msgspec

Shapes = dict[str, tuple[int, ...]]
Scores = Literal["softmax", "sigmoid"]
GATE_UP = "mlp.experts.gate_up_proj"
DOWN = "mlp.experts.down_proj"
_SHARED = "mlp.shared_expert"


class MixtureOfExperts(msgspec.Struct, frozen=True, tag="mixture"):
    """Experts `down(gate * sigmoid(alpha * gate) * (up + beta))`, and how tokens choose them.

    Scores are the softmax or the sigmoid of the router's logits; the `top_k` largest are chosen,
    after a `selection_bias` for each expert that counts for the choice only (LFM2). Weights are
    the scores, if `normalized` divided by their sum plus `epsilon`, times `scaling`. With a `limit`
    gate is clamped from above and up on both sides (gpt-oss).
    """

    experts: int
    top_k: int
    size: int
    """Intermediate size of an expert."""
    scores: Scores = "softmax"
    normalized: bool = False
    epsilon: float = 0.0
    scaling: float = 1.0
    selection_bias: bool = False
    router_bias: bool = False
    biases: bool = False
    """Experts' matrices have biases."""
    alpha: float = 1.0
    beta: float = 0.0
    limit: float | None = None
    shared: int = 0
    """Intermediate size of an expert that runs for every token; 0 for none."""
    shared_fused: bool = False
    """Its gate and up are stored as one matrix (Granite 4 H)."""
    shared_gate: bool = False
    """The shared expert's output is scaled by the sigmoid of one more logit (Qwen)."""

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Groups of matrices and the modules or stacks that each consists of."""
        groups: dict[str, tuple[str, ...]] = {
            "mlp.experts.gate_up": (GATE_UP,),
            "mlp.experts.down": (DOWN,),
        }
        if self.shared:
            pair: tuple[str, ...] = (f"{_SHARED}.gate_proj", f"{_SHARED}.up_proj")
            if self.shared_fused:
                pair = (f"{_SHARED}.gate_up_proj",)
            groups |= {"mlp.shared.gate_up": pair, "mlp.shared.down": (f"{_SHARED}.down_proj",)}
        return groups

    def stacks(self, hidden: int) -> Shapes:
        """The stacked matrices: experts, outputs and inputs."""
        return {
            GATE_UP: (self.experts, 2 * self.size, hidden),
            DOWN: (self.experts, hidden, self.size),
        }

    def modules(self, hidden: int) -> Shapes:
        """Outputs and inputs of the modules that are matrices: the shared expert's."""
        if not self.shared:
            return {}
        inputs = dict.fromkeys(("gate_proj", "up_proj"), (self.shared, hidden))
        if self.shared_fused:
            inputs = {"gate_up_proj": (2 * self.shared, hidden)}
        shapes = inputs | {"down_proj": (hidden, self.shared)}
        return {f"{_SHARED}.{name}": shape for name, shape in shapes.items()}

    def vectors(self, hidden: int) -> Shapes:
        """All other tensors, by name; the router among them, which is never quantized."""
        shapes: Shapes = {"mlp.router.weight": (self.experts, hidden)}
        if self.router_bias:
            shapes["mlp.router.bias"] = (self.experts,)
        if self.selection_bias:
            shapes["mlp.expert_bias"] = (self.experts,)
        if self.biases:
            shapes[f"{GATE_UP}_bias"] = (self.experts, 2 * self.size)
            shapes[f"{DOWN}_bias"] = (self.experts, hidden)
        if self.shared_gate:
            shapes["mlp.shared_expert_gate.weight"] = (1, hidden)
        return shapes

    def vector_parameters(self, hidden: int) -> int:
        """Elements of `vectors`; the bias of the choice is no parameter to Hugging Face."""
        sizes = sum(math.prod(shape) for shape in self.vectors(hidden).values())
        return sizes - self.experts * self.selection_bias

    def matrices(self, hidden: int) -> tuple[tuple[int, int], ...]:
        """Outputs and inputs of the executed matrices, those of all experts as one."""
        stacks = [(count * rows, columns) for count, rows, columns in self._stacked(hidden)]
        shared = [(2 * self.shared, hidden), (hidden, self.shared)] if self.shared else []
        return (*stacks, *shared)

    def inactive_parameters(self, hidden: int) -> int:
        """Parameters of the experts that a token does not run."""
        return self.expert_parameters(hidden) // self.experts * (self.experts - self.top_k)

    def expert_parameters(self, hidden: int) -> int:
        """Parameters of all experts' matrices, but for the shared one."""
        return sum(count * rows * columns for count, rows, columns in self._stacked(hidden))

    def _stacked(self, hidden: int) -> tuple[tuple[int, int, int], ...]:
        return (self.experts, 2 * self.size, hidden), (self.experts, hidden, self.size)
