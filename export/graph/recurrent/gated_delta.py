"""Qwen3.5's gated delta rule in ONNX Runtime's ops; see edgelm.spec.layers.mixers.GatedDelta."""

import numpy as np
import onnx_ir as ir
import torch

from edgelm.export.graph.attention.kv_cache import KvCacheIO
from edgelm.export.graph.builder import Graph
from edgelm.export.graph.dtypes import DTYPES, Activations, write_floats
from edgelm.export.graph.recurrent.short_conv import ConvWeights, causal_conv
from edgelm.export.quantize.weights import DeltaWeights
from edgelm.spec.layers.mixers import GatedDelta

Value = ir.Value
_MICROSOFT = "com.microsoft"
_L2_EPSILON = 1e-6  # of flash-linear-attention and transformers


class FusedGatedDelta:
    """Writes the mixer of the layer `index`."""

    def __init__(
        self,
        graph: Graph,
        cache: KvCacheIO,
        index: int,
        mixer: GatedDelta,
        *,
        epsilon: float,
        activations: Activations,
    ) -> None:
        self.graph = graph
        self.cache = cache
        self.index = index
        self.name = f"layers.{index}.linear_attn"
        self.mixer = mixer
        self.epsilon = epsilon
        self.activations = activations

    def write(self, inputs: Value, weights: DeltaWeights) -> Value:
        """qkv, z, b, a side by side [1, T, ...] -> [1, T, value_size]."""
        mixer = self.mixer
        sizes = [mixer.channels, mixer.value_size, mixer.value_heads, mixer.value_heads]
        qkv, z, b, a = self._split(inputs, sizes)
        conv, name = ConvWeights(self.index, weights.kernel, None), f"{self.name}.conv1d"
        mixed = causal_conv(self.graph, self.cache, qkv, conv, self.activations, name=name)
        mixed = self._silu(mixed)
        query, key, value = self._split(mixed, [mixer.key_size, mixer.key_size, mixer.value_size])
        decay, beta = self.graph.op(
            "LinearAttentionGate",
            a,
            self._floats("dt_bias", weights.dt_bias, "fp32"),  # the op has no other type
            self._floats("decay_scale", weights.decay_scale, "fp32"),
            b,
            domain=_MICROSOFT,
            outputs=2,
        )
        attended = self._attended(self._l2_normed(query), self._l2_normed(key), value, decay, beta)
        # Not GatedRMSNorm, whose CPU kernel takes 6 to 20 times as long.
        normed = self._rms_norm(
            self._heads(attended, mixer.value_dim),
            self._floats("norm.weight", weights.norm),
            self.epsilon,
        )
        return self.graph.op("Mul", self._flat(normed), self._silu(z))  # type: ignore[no-any-return]

    def _silu(self, x: Value) -> Value:
        return self.graph.op("QuickGelu", x, domain=_MICROSOFT, alpha=1.0)  # type: ignore[no-any-return]

    def _rms_norm(self, x: Value, weight: Value, epsilon: float) -> Value:
        return self.graph.op(  # type: ignore[no-any-return]
            "SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=epsilon
        )

    def _attended(self, query: Value, key: Value, value: Value, decay: Value, beta: Value) -> Value:
        attended, state = self.graph.op(
            "LinearAttention",
            query,
            key,
            value,
            self.cache.past_state(self.index, "matrix"),
            decay,
            beta,
            domain=_MICROSOFT,
            outputs=2,
            name=f"layers.{self.index}.delta",
            update_rule="gated_delta",
            q_num_heads=self.mixer.key_heads,
            kv_num_heads=self.mixer.value_heads,
            scale=self.mixer.key_dim**-0.5,
        )
        self.cache.present_state(self.index, state, "matrix")
        return attended  # type: ignore[no-any-return]

    def _l2_normed(self, x: Value) -> Value:
        """X / sqrt(sum(x^2) + epsilon) per head: an RMS norm whose weight is 1 / sqrt(key_dim)."""
        width = self.mixer.key_dim
        weight = np.full(width, width**-0.5, dtype=DTYPES[self.activations].numpy())
        factors = self.graph.constant(f"l2_norm.{width}", weight)
        return self._flat(self._rms_norm(self._heads(x, width), factors, _L2_EPSILON / width))

    def _split(self, x: Value, sizes: list[int]) -> tuple[Value, ...]:
        constant = self.graph.constant(f"delta_sizes.{sizes}", np.array(sizes, dtype=np.int64))
        return self.graph.op("Split", x, constant, outputs=len(sizes), axis=-1)  # type: ignore[no-any-return]

    def _heads(self, x: Value, width: int) -> Value:
        shape = np.array([0, 0, -1, width], dtype=np.int64)
        return self.graph.op("Reshape", x, self.graph.constant(f"shape.heads.{width}", shape))  # type: ignore[no-any-return]

    def _flat(self, x: Value) -> Value:
        shape = np.array([0, 0, -1], dtype=np.int64)
        return self.graph.op("Reshape", x, self.graph.constant("shape.flat", shape))  # type: ignore[no-any-return]

    def _floats(
        self, name: str, tensor: torch.Tensor, activations: Activations | None = None
    ) -> Value:
        stored = f"{self.name}.{name}"
        return write_floats(self.graph, stored, tensor, activations or self.activations)
