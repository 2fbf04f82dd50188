"""Qwen3.5's gated delta rule in primitive ops, for TensorRT (`GatedDelta` in core/spec).

Tokens are taken in chunks of 32, in the chunked form of the rule (Yang et al., arXiv 2406.06484 and
2412.06464): within a chunk everything is a matrix product, for all chunks at once, and only the
state passes from one chunk to the next, in a Scan. A single token is a chunk that is filled up with
tokens that change nothing. All of it is in fp32: the triangular inverse amplifies rounding.
"""

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from edgelm.export.graph.qdq import QdqDialect
from edgelm.export.graph.recurrent.short_conv import ConvWeights, causal_conv
from edgelm.export.quantize.weights import DeltaWeights
from edgelm.spec.layers.mixers import GatedDelta

Value = ir.Value
_CHUNK = 32
_DOUBLINGS = 4  # powers of the triangular matrix: 2, 4, 8, 16 of 32
_L2_EPSILON = 1e-6
_NEVER = -1e9  # its exponential is zero


class _Chunks(NamedTuple):
    """Of all chunks: queries, keys and values [chunks, heads, 32, dim]; gates have dim 1."""

    query: Value
    key: Value
    value: Value
    decay: Value
    beta: Value


class PlainGatedDelta:
    """Writes the mixer of the layer `index`."""

    def __init__(self, dialect: QdqDialect, index: int, mixer: GatedDelta) -> None:
        self.dialect = dialect
        self.graph = dialect.graph
        self.index = index
        self.mixer = mixer
        self.name = f"layers.{index}.linear_attn"

    def write(self, inputs: Value, weights: DeltaWeights) -> Value:
        """qkv, z, b, a side by side [1, T, ...] -> [1, T, value_size]."""
        mixer, op = self.mixer, self.graph.op
        sizes = [mixer.channels, mixer.value_size, mixer.value_heads, mixer.value_heads]
        qkv, z, b, a = self._split(inputs, sizes)
        conv = ConvWeights(self.index, weights.kernel, None)
        mixed = causal_conv(
            self.graph,
            self.dialect.cache,
            qkv,
            conv,
            self.dialect.activations,
            name=f"{self.name}.conv1d",
        )
        mixed = self._wide(op("Mul", mixed, op("Sigmoid", mixed)))
        parts = self._split(mixed, [mixer.key_size, mixer.key_size, mixer.value_size])
        attended = self._attended(self._chunks(parts, self._wide(a), self._wide(b), weights))
        if self.dialect.activations != "fp32":
            attended = self.dialect.cast(attended, self.dialect.activations)
        normed = self.dialect.norm(attended, f"{self.name}.norm", weights.norm)
        gate = self._heads(z, mixer.value_heads, mixer.value_dim)
        silu = op("Mul", gate, op("Sigmoid", gate))
        return self.graph.reshape(op("Mul", normed, silu), [1, -1, mixer.value_size])

    def _chunks(
        self, parts: tuple[Value, ...], a: Value, b: Value, weights: DeltaWeights
    ) -> _Chunks:
        mixer, op = self.mixer, self.graph.op
        query, key = (self._per_value_head(self._l2_normed(one)) for one in parts[:2])
        query = op("Mul", query, self._number(mixer.key_dim**-0.5))
        value = self._heads(parts[2], mixer.value_heads, mixer.value_dim)
        shifted = op("Add", a, self._vector("dt_bias", weights.dt_bias.numpy()))
        scale = self._vector("decay_scale", weights.decay_scale.numpy())
        decay = op("Mul", op("Softplus", shifted), scale)
        gates = [self._heads(one, mixer.value_heads, 1) for one in (decay, op("Sigmoid", b))]
        widths = (mixer.key_dim, mixer.key_dim, mixer.value_dim, 1, 1)
        tokens = (query, key, value, *gates)
        chunks = (self._in_chunks(one, width) for one, width in zip(tokens, widths, strict=True))
        return _Chunks(*chunks)

    def _attended(self, chunks: _Chunks) -> Value:
        """Outputs [1, T, heads, value_dim], and the state after them."""
        cache = self.dialect.cache
        state = self.graph.reshape(cache.past_state(self.index, "matrix"), self._state_shape[1:])
        name = f"{self.name}.chunks"
        state, outputs = self.graph.scan(state, self._scanned(chunks), self._step, name=name)
        cache.present_state(self.index, self.graph.reshape(state, self._state_shape), "matrix")
        return self._in_tokens(outputs)

    def _scanned(self, chunks: _Chunks) -> tuple[Value, ...]:
        """What `_step` takes of every chunk."""
        op = self.graph.op
        total = op("MatMul", self._triangle(), chunks.decay)  # of the decays up to a token
        lower = self._mask("lower", np.tril(np.ones((_CHUNK, _CHUNK), dtype=bool)))
        gaps = op("Sub", total, op("Transpose", total, perm=[0, 1, 3, 2]))
        between = op("Exp", op("Where", lower, gaps, self._number(_NEVER)))
        keys = op("Transpose", chunks.key, perm=[0, 1, 3, 2])
        weighted = op("Mul", chunks.key, chunks.beta)
        inverse = self._inverse(op("Mul", op("MatMul", weighted, keys), between))
        grown = op("Exp", total)
        last = op("Slice", total, *self._bounds(_CHUNK - 1, _CHUNK, axis=2))
        remaining = op("Mul", chunks.key, op("Exp", op("Sub", last, total)))
        return (
            op("MatMul", inverse, op("Mul", weighted, grown)),
            op("MatMul", inverse, op("Mul", chunks.value, chunks.beta)),
            op("Mul", chunks.query, grown),
            op("Mul", op("MatMul", chunks.query, keys), between),
            op("Transpose", remaining, perm=[0, 1, 3, 2]),
            op("Exp", last),
        )

    def _step(self, state: Value, *rows: Value) -> tuple[Value, Value]:
        """One chunk: the next state, and the outputs.

        `rows`: what keys read of the state, and what it should be corrected by if it were empty;
        queries; their weights within the chunk; keys as they last until its end; the decay over it.
        """
        read, new, query, within, key, decay = rows
        op = self.graph.op
        corrected = op("Sub", new, op("MatMul", read, state))
        output = op("Add", op("MatMul", query, state), op("MatMul", within, corrected))
        return op("Add", op("Mul", state, decay), op("MatMul", key, corrected)), output

    def _inverse(self, products: Value) -> Value:
        """(I + strictly lower part)^-1, which is a sum of 32 powers, by doubling."""
        op = self.graph.op
        strict = self._mask("strict", np.tril(np.ones((_CHUNK, _CHUNK), dtype=bool), -1))
        power = op("Where", strict, op("Neg", products), self._number(0.0))
        identity = self.graph.constant("delta.identity", np.eye(_CHUNK, dtype=np.float32))
        inverse = op("Add", power, identity)
        for _ in range(_DOUBLINGS):
            power = op("MatMul", power, power)
            inverse = op("Add", inverse, op("MatMul", inverse, power))
        return inverse  # type: ignore[no-any-return]

    def _in_chunks(self, x: Value, width: int) -> Value:
        """[1, T, heads, dim] -> [chunks, heads, 32, dim], filled up with zeros."""
        op = self.graph.op
        rows = op("Pad", x, self._filling())
        split = self.graph.reshape(rows, [-1, _CHUNK, self.mixer.value_heads, width])
        return op("Transpose", split, perm=[0, 2, 1, 3])  # type: ignore[no-any-return]

    def _in_tokens(self, x: Value) -> Value:
        """The inverse of `_in_chunks`."""
        op, mixer = self.graph.op, self.mixer
        turned = op("Transpose", x, perm=[0, 2, 1, 3])
        rows = self.graph.reshape(turned, [1, -1, mixer.value_heads, mixer.value_dim])
        start, axis, one = (self._index(at) for at in (0, 1, 1))
        return op("Slice", rows, start, self._count(), axis, one)  # type: ignore[no-any-return]

    def _filling(self) -> Value:
        """How much `Pad` adds before and after each axis: up to whole chunks of tokens."""
        op = self.graph.op
        size, more = self._index(_CHUNK), self._index(_CHUNK - 1)
        whole = op("Mul", op("Div", op("Add", self._count(), more), size), size)
        missing = op("Sub", whole, self._count())
        before = self.graph.constant("delta.pad.5", np.zeros(5, dtype=np.int64))
        after = self.graph.constant("delta.pad.2", np.zeros(2, dtype=np.int64))
        return op("Concat", before, missing, after, axis=0)  # type: ignore[no-any-return]

    def _count(self) -> Value:
        """The number of tokens [1]."""
        shape = self.graph.op("Shape", self.dialect.positions)
        return self.graph.op("Slice", shape, self._index(1), self._index(2))  # type: ignore[no-any-return]

    @property
    def _state_shape(self) -> list[int]:
        return [1, self.mixer.value_heads, self.mixer.key_dim, self.mixer.value_dim]

    def _l2_normed(self, x: Value) -> Value:
        """[1, T, key_size] -> [1, T, key_heads, key_dim], x / sqrt(sum(x^2) + epsilon)."""
        op = self.graph.op
        heads = self._heads(x, self.mixer.key_heads, self.mixer.key_dim)
        squares = op("ReduceSum", op("Mul", heads, heads), self._index(3), keepdims=1)
        root = op("Sqrt", op("Add", squares, self._number(_L2_EPSILON)))
        return op("Div", heads, root)  # type: ignore[no-any-return]

    def _per_value_head(self, x: Value) -> Value:
        """Each key head for the value heads that it serves."""
        mixer = self.mixer
        times = mixer.value_heads // mixer.key_heads
        if times == 1:
            return x
        single = self.graph.reshape(x, [1, -1, mixer.key_heads, 1, mixer.key_dim])
        repeated = self.graph.op("Concat", *[single] * times, axis=3)
        return self.graph.reshape(repeated, [1, -1, mixer.value_heads, mixer.key_dim])

    def _triangle(self) -> Value:
        """A product with it sums over the tokens of a chunk up to each."""
        ones = np.tril(np.ones((_CHUNK, _CHUNK), dtype=np.float32))
        return self.graph.constant("delta.triangle", ones)

    def _heads(self, x: Value, heads: int, width: int) -> Value:
        return self.graph.reshape(x, [1, -1, heads, width])

    def _split(self, x: Value, sizes: list[int]) -> tuple[Value, ...]:
        constant = self.graph.constant(f"delta_sizes.{sizes}", np.array(sizes, dtype=np.int64))
        return self.graph.op("Split", x, constant, outputs=len(sizes), axis=-1)  # type: ignore[no-any-return]

    def _mask(self, name: str, values: "np.typing.NDArray[np.bool_]") -> Value:
        return self.graph.constant(f"delta.{name}", values)

    def _vector(self, name: str, values: "np.typing.NDArray[np.float32]") -> Value:
        return self.graph.constant(f"{self.name}.{name}", values.astype(np.float32))

    def _bounds(self, start: int, end: int, *, axis: int) -> tuple[Value, ...]:
        return tuple(self._index(at) for at in (start, end, axis))

    def _index(self, at: int) -> Value:
        return self.graph.constant(f"at.{at}", np.array([at], dtype=np.int64))

    def _number(self, value: float) -> Value:
        return self.dialect.number(value, "fp32")

    def _wide(self, x: Value) -> Value:
        return x if self.dialect.activations == "fp32" else self.dialect.cast(x, "fp32")
