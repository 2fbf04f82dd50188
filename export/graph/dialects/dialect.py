"""What the decoder asks of a dialect: the few ops in which engines differ."""

from collections.abc import Callable
from typing import Protocol

import onnx_ir as ir
import torch

from edgelm.export.graph.builder import Graph
from edgelm.export.graph.dtypes import Activations, Bias
from edgelm.export.quantize.weights import DeltaWeights, MambaWeights, Router, Xielu
from edgelm.quantize.grids import Inputs
from edgelm.spec.decoder import LayerSpec
from edgelm.spec.layers.experts import MixtureOfExperts
from edgelm.spec.layers.mixers import GatedDelta, Mamba2

Value = ir.Value


class Dialect(Protocol):
    """The ops in which engines differ. Shapes: [1, T, features] unless stated otherwise."""

    graph: Graph
    activations: Activations

    def start_part(self) -> None:
        """A layer begins, or what follows the last one: the graph may be cut here."""

    def embed(self) -> Value:
        """The rows of the embedding for the input tokens, before any multiplier."""

    def embed_per_layer(self) -> Value:
        """Those of the per-layer embedding: [1, T, layers * size]."""

    def linear(
        self, x: Value, group: str, matrix: Callable[[], torch.Tensor], bias: torch.Tensor | None
    ) -> Value:
        """`x @ matrix.T + bias`; the matrix is read only when it is written."""

    def prepare_inputs(self, x: Value, group: str, inputs: Inputs) -> Value:
        """Scale and reorder a group's inputs for the levels of a quantized source."""

    def norm(self, x: Value, name: str, weight: torch.Tensor, bias: Bias = None) -> Value:
        """RMS norm over the last axis; with a bias, LayerNorm."""

    def add_norm(
        self, stream: Value, delta: Value, name: str, weight: torch.Tensor, bias: Bias = None
    ) -> tuple[Value, Value]:
        """`(norm(stream + delta), stream + delta)`."""

    def add(self, x: Value, y: Value) -> Value:
        """Elementwise sum."""

    def scale(self, x: Value, factor: float) -> Value:
        """Product with a constant."""

    def number(self, value: float, activations: Activations | None = None) -> Value:
        """A scalar in the type of the activations, or another."""

    def attention(
        self,
        qkv: Value,
        index: int,
        layer: LayerSpec,
        qk_norm: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> Value:
        """Rotate, append to the cache, attend: [1, T, q + 2 kv] -> [1, T, q].

        `qkv` lacks values, or keys and values, where the layer takes them from elsewhere; and
        `qk_norm` has two equal weights then. Values are normed if the spec says so.
        """

    def split_gate(self, qkv: Value, layer: LayerSpec) -> tuple[Value, Value]:
        """What attention takes, and the gate of its output: [1, T, 2 q + 2 kv]."""

    def scale_by_gate(self, x: Value, gate: Value) -> Value:
        """`x * sigmoid(gate)`."""

    def gated_delta(
        self, inputs: Value, index: int, mixer: GatedDelta, weights: DeltaWeights
    ) -> Value:
        """See GatedDelta; `inputs` are qkv, z, b and a side by side -> [1, T, value_size]."""

    def mamba2(self, inputs: Value, index: int, mixer: Mamba2, weights: MambaWeights) -> Value:
        """See Mamba2; `inputs` are z, x, B, C and dt side by side -> [1, T, size]."""

    def short_conv(
        self, gates: Value, index: int, kernel: torch.Tensor, bias: torch.Tensor | None
    ) -> Value:
        """`c * conv(b * x)` of `b, c, x` side by side: [1, T, 3 H] -> [1, T, H].

        `kernel` is [H, 1, K], `bias` [H]. The convolution reads what the layer remembers, the last
        K - 1 products, before those of the run, and declares its new ones.
        """

    def gated(self, gate_up: Value, size: int, sparsity: float = 0.0) -> Value:
        """`activation(gate) * up` of [1, T, 2 size] -> [1, T, size].

        With a sparsity, most gates are zero (`sparse_gates`).
        """

    def experts(self, x: Value, index: int, mixture: MixtureOfExperts, router: Router) -> Value:
        """The sum of the chosen experts' outputs: [1, T, H] -> [1, T, H]."""

    def gate_shared(self, shared: Value, x: Value, index: int, weight: torch.Tensor) -> Value:
        """`shared * sigmoid(x @ weight.T)`, with weight [1, H]."""

    def activate(self, x: Value, xielu: Xielu | None) -> Value:
        """The spec's activation of every element; xIELU has parameters in each layer."""

    def select_positions(self, x: Value) -> Value:
        """The rows whose logits are requested: [1, T, H] -> [1, P, H]."""

    def finish(self, logits: Value) -> None:
        """Soft cap, and declare the output."""
