"""Mamba-2 in ONNX Runtime's ops; see edgelm.spec.layers.mixers.Mamba2."""

import numpy as np
import onnx_ir as ir
import torch

from edgelm.export.graph.attention.kv_cache import KvCacheIO
from edgelm.export.graph.builder import Graph
from edgelm.export.graph.dtypes import DTYPES, Activations, write_floats
from edgelm.export.graph.recurrent.short_conv import ConvWeights, causal_conv
from edgelm.export.quantize.weights import MambaWeights
from edgelm.spec.layers.mixers import Mamba2

Value = ir.Value
_MICROSOFT = "com.microsoft"


class FusedMamba2:
    """Writes the mixer of the layer `index`.

    LinearAttention with the rule `gated` is its recurrence: C are the queries, B the keys and
    dt x the values. The op shares queries and keys between consecutive heads.
    """

    def __init__(
        self,
        graph: Graph,
        cache: KvCacheIO,
        index: int,
        mixer: Mamba2,
        *,
        epsilon: float,
        activations: Activations,
    ) -> None:
        self.graph = graph
        self.cache = cache
        self.index = index
        self.mixer = mixer
        self.epsilon = epsilon
        self.activations = activations

    def write(self, inputs: Value, weights: MambaWeights) -> Value:
        """z, x, B, C, dt side by side [1, T, ...] -> [1, T, size]."""
        mixer, op = self.mixer, self.graph.op
        z, mixed, dt = self._split(inputs, [mixer.size, mixer.channels, mixer.heads])
        mixed = self._convolved(mixed, weights)
        x, b, c = self._split(mixed, [mixer.size, mixer.group_size, mixer.group_size])
        steps = op("Softplus", op("Add", dt, self._floats("dt_bias", weights.dt_bias)))
        decay = op("Mul", steps, self._floats("decay_scale", weights.decay_scale))
        value = op("Mul", self._heads(x, mixer.head_dim), self._heads(steps, 1))
        attended = self._attended(c, b, self._flat(value), decay)
        skip = self._floats("D", weights.skip.repeat_interleave(mixer.head_dim))
        summed = op("Add", attended, op("Mul", x, skip))
        gate = op("QuickGelu", z, domain=_MICROSOFT, alpha=1.0)
        if mixer.norm == "before_gate":
            return op("Mul", self._normed(summed, weights.norm), gate)  # type: ignore[no-any-return]
        return self._normed(op("Mul", summed, gate), weights.norm)

    def _convolved(self, mixed: Value, weights: MambaWeights) -> Value:
        """The convolution and SiLU."""
        conv = ConvWeights(self.index, weights.kernel, None)
        name = f"layers.{self.index}.mamba.conv1d"
        total = causal_conv(self.graph, self.cache, mixed, conv, self.activations, name=name)
        if weights.conv_bias is not None:
            total = self.graph.op("Add", total, self._floats("conv1d.bias", weights.conv_bias))
        return self.graph.op("QuickGelu", total, domain=_MICROSOFT, alpha=1.0)  # type: ignore[no-any-return]

    def _attended(self, query: Value, key: Value, value: Value, decay: Value) -> Value:
        attended, state = self.graph.op(
            "LinearAttention",
            query,
            key,
            value,
            self.cache.past_state(self.index, "matrix"),
            decay,
            domain=_MICROSOFT,
            outputs=2,
            name=f"layers.{self.index}.mamba",
            update_rule="gated",
            q_num_heads=self.mixer.n_groups,
            kv_num_heads=self.mixer.heads,
            scale=1.0,
        )
        self.cache.present_state(self.index, state, "matrix")
        return attended  # type: ignore[no-any-return]

    def _normed(self, x: Value, weight: torch.Tensor | None) -> Value:
        """RMS norm over the channels of each group, if there is one."""
        if weight is None:
            return x
        groups = self.mixer.n_groups
        factors = self._floats("norm.weight", weight)
        if groups == 1:
            return self._rms_norm(x, factors)
        width = self.mixer.size // groups
        ones = np.ones(width, dtype=DTYPES[self.activations].numpy())
        normed = self._rms_norm(
            self._heads(x, width), self.graph.constant(f"mamba.ones.{width}", ones)
        )
        return self.graph.op("Mul", self._flat(normed), factors)  # type: ignore[no-any-return]

    def _rms_norm(self, x: Value, weight: Value) -> Value:
        return self.graph.op(  # type: ignore[no-any-return]
            "SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=self.epsilon
        )

    def _split(self, x: Value, sizes: list[int]) -> tuple[Value, ...]:
        constant = self.graph.constant(f"mamba_sizes.{sizes}", np.array(sizes, dtype=np.int64))
        return self.graph.op("Split", x, constant, outputs=len(sizes), axis=-1)  # type: ignore[no-any-return]

    def _heads(self, x: Value, width: int) -> Value:
        return self.graph.reshape(x, [0, 0, -1, width])

    def _flat(self, x: Value) -> Value:
        return self.graph.reshape(x, [0, 0, -1])

    def _floats(self, name: str, tensor: torch.Tensor) -> Value:
        stored = f"layers.{self.index}.mamba.{name}"
        return write_floats(self.graph, stored, tensor, self.activations)
