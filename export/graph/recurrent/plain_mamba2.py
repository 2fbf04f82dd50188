"""Mamba-2 in primitive ops, for TensorRT; see edgelm.spec.layers.mixers.Mamba2.

Tokens are taken in chunks of up to 64, as in the paper (Dao and Gu, arXiv 2405.21060, section 6):
within a chunk everything is a matrix product, and so are the states at the chunks' ends, as sums
over all chunks before, each with its decay. There is no loop, and a single token is a chunk of one.
All of it is in fp32.
"""

from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import torch

from edgelm.export.graph.dtypes import write_floats
from edgelm.export.graph.qdq import QdqDialect
from edgelm.export.graph.recurrent.short_conv import ConvWeights, causal_conv
from edgelm.export.quantize.weights import MambaWeights
from edgelm.spec.layers.mixers import Mamba2

Value = ir.Value
_CHUNK = 64
_NEVER = -1e9  # its exponential is zero


class _Chunks(NamedTuple):
    """dt x, dt a, B and C of all chunks, which have up to 64 rows.

    [groups, heads of a group, chunks, rows, head_dim], the same with one channel, and
    [groups, 1, chunks, rows, state_size].
    """

    value: Value
    decay: Value
    key: Value
    query: Value


class _Decays(NamedTuple):
    """Logarithms, sums of dt a: until each token of its chunk, and of the run; of whole chunks.

    [groups, heads of a group, chunks, rows, 1] and, for chunks, [groups, heads, chunks, 1].
    """

    in_chunk: Value
    in_run: Value
    of_chunks: Value
    until_chunks: Value
    """Of all chunks before and of this one."""
    whole: Value


class PlainMamba2:
    """Writes the mixer of the layer `index`."""

    def __init__(self, dialect: QdqDialect, index: int, mixer: Mamba2) -> None:
        self.dialect = dialect
        self.graph = dialect.graph
        self.index = index
        self.mixer = mixer
        self.name = f"layers.{index}.mamba"
        self.per_group = mixer.heads // mixer.n_groups

    def write(self, inputs: Value, weights: MambaWeights) -> Value:
        """z, x, B, C, dt side by side [1, T, ...] -> [1, T, size]."""
        mixer, op = self.mixer, self.graph.op
        z, mixed, dt = self._split(inputs, [mixer.size, mixer.channels, mixer.heads])
        mixed = self._wide(self._convolved(mixed, weights))
        x, b, c = self._split(mixed, [mixer.size, mixer.group_size, mixer.group_size])
        steps = op("Softplus", op("Add", self._wide(dt), self._vector("dt_bias", weights.dt_bias)))
        decay = op("Mul", steps, self._vector("decay_scale", weights.decay_scale))
        heads = self.graph.reshape(x, [1, -1, mixer.heads, mixer.head_dim])
        value = op("Mul", heads, self.graph.reshape(steps, [1, -1, mixer.heads, 1]))
        value = self.graph.reshape(value, [1, -1, mixer.size])
        attended = self._attended(self._chunks(value, decay, b, c))
        skip = self._vector("D", weights.skip.repeat_interleave(mixer.head_dim))
        summed = op("Add", attended, op("Mul", x, skip))
        z = self._wide(z)
        gate = op("Mul", z, op("Sigmoid", z))
        if mixer.norm == "before_gate":
            return self._narrow(op("Mul", self._normed(summed, weights.norm), gate))
        return self._narrow(self._normed(op("Mul", summed, gate), weights.norm))

    def _convolved(self, mixed: Value, weights: MambaWeights) -> Value:
        """The convolution and SiLU."""
        dialect, op = self.dialect, self.graph.op
        conv = ConvWeights(self.index, weights.kernel, None)
        name = f"{self.name}.conv1d"
        total = causal_conv(self.graph, dialect.cache, mixed, conv, dialect.activations, name=name)
        if weights.conv_bias is not None:
            total = op("Add", total, dialect.matrices.floats(f"{name}.bias", weights.conv_bias))
        return op("Mul", total, op("Sigmoid", total))  # type: ignore[no-any-return]

    def _chunks(self, value: Value, decay: Value, b: Value, c: Value) -> _Chunks:
        mixer, per_group = self.mixer, self.per_group
        return _Chunks(
            self._in_chunks(value, per_group, mixer.head_dim),
            self._in_chunks(decay, per_group, 1),
            self._in_chunks(b, 1, mixer.state_size),
            self._in_chunks(c, 1, mixer.state_size),
        )

    def _attended(self, chunks: _Chunks) -> Value:
        """Outputs [1, T, size], and the state after them."""
        mixer, op, cache = self.mixer, self.graph.op, self.dialect.cache
        decays = self._decays(chunks.decay)
        shape = [mixer.n_groups, self.per_group, 1, mixer.state_size, mixer.head_dim]
        past = self.graph.reshape(cache.past_state(self.index, "matrix"), shape)
        old = op("Mul", op("MatMul", chunks.query, past), op("Exp", decays.in_run))
        before = self._before(chunks, decays)
        read = op("Mul", op("MatMul", chunks.query, before), op("Exp", decays.in_chunk))
        lower = self._lower("GreaterOrEqual", self._rows())
        between = self._exp_of(lower, decays.in_chunk, self._turned(decays.in_chunk))
        scores = op("Mul", op("MatMul", chunks.query, self._turned(chunks.key)), between)
        within = op("MatMul", scores, chunks.value)
        self._declare_state(past, chunks, decays)
        return self._in_tokens(op("Add", op("Add", old, read), within))

    def _decays(self, decay: Value) -> _Decays:
        op, mixer = self.graph.op, self.mixer
        in_chunk = op("MatMul", self._ones("GreaterOrEqual", self._rows()), decay)
        sums = op("ReduceSum", decay, self._index(3), keepdims=0)  # [groups, heads, chunks, 1]
        count = op("Slice", op("Shape", sums), self._index(2), self._index(3))
        until = op("MatMul", self._ones("GreaterOrEqual", count), sums)
        shape = [mixer.n_groups, self.per_group, -1, 1, 1]
        earlier = self.graph.reshape(op("Sub", until, sums), shape)
        whole = op("ReduceSum", sums, self._index(2), keepdims=1)
        whole = self.graph.reshape(whole, [mixer.n_groups, self.per_group, 1, 1, 1])
        return _Decays(in_chunk, op("Add", in_chunk, earlier), sums, until, whole)

    def _before(self, chunks: _Chunks, decays: _Decays) -> Value:
        """What earlier chunks of the run add to the state before each chunk."""
        op, mixer = self.graph.op, self.mixer
        sizes = [mixer.n_groups, self.per_group, -1]
        last = self.graph.reshape(decays.of_chunks, [*sizes, 1, 1])
        lasting = op("Mul", chunks.value, op("Exp", op("Sub", last, decays.in_chunk)))
        added = op("MatMul", self._turned(chunks.key), lasting)
        flat = self.graph.reshape(added, [*sizes, mixer.state_size * mixer.head_dim])
        count = op("Slice", op("Shape", flat), self._index(2), self._index(3))
        earlier = op("Sub", decays.until_chunks, decays.of_chunks)
        since = op("Transpose", decays.until_chunks, perm=[0, 1, 3, 2])
        weights = self._exp_of(self._lower("Greater", count), earlier, since)
        summed = op("MatMul", weights, flat)
        return self.graph.reshape(summed, [*sizes, mixer.state_size, mixer.head_dim])

    def _declare_state(self, past: Value, chunks: _Chunks, decays: _Decays) -> None:
        """The state after the run, in one product over all of its tokens."""
        op, mixer, per_group = self.graph.op, self.mixer, self.per_group
        lasting = op("Mul", chunks.value, op("Exp", op("Sub", decays.whole, decays.in_run)))
        rows = self.graph.reshape(lasting, [mixer.n_groups, per_group, -1, mixer.head_dim])
        keys = self.graph.reshape(chunks.key, [mixer.n_groups, 1, -1, mixer.state_size])
        added = op("MatMul", op("Transpose", keys, perm=[0, 1, 3, 2]), rows)
        shape = [1, mixer.heads, mixer.state_size, mixer.head_dim]
        old = self.graph.reshape(op("Mul", past, op("Exp", decays.whole)), shape)
        state = op("Add", old, self.graph.reshape(added, shape))
        self.dialect.cache.present_state(self.index, state, "matrix")

    def _exp_of(self, mask: Value, until: Value, since: Value) -> Value:
        """exp(until - since) in the mask: [..., rows, 1], [..., 1, rows] -> [..., rows, rows]."""
        op = self.graph.op
        gaps = op("Sub", until, since)
        return op("Exp", op("Where", mask, gaps, self._number(_NEVER)))  # type: ignore[no-any-return]

    def _normed(self, x: Value, weight: torch.Tensor | None) -> Value:
        """RMS norm over the channels of each group, if there is one."""
        if weight is None:
            return x
        op, mixer = self.graph.op, self.mixer
        groups = self.graph.reshape(x, [1, -1, mixer.n_groups, mixer.size // mixer.n_groups])
        squares = op("ReduceSum", op("Mul", groups, groups), self._index(3), keepdims=1)
        mean = op("Mul", squares, self._number(mixer.n_groups / mixer.size))
        root = op("Sqrt", op("Add", mean, self._number(self.dialect.spec.rms_norm_eps)))
        normed = self.graph.reshape(op("Div", groups, root), [1, -1, mixer.size])
        return op("Mul", normed, self._vector("norm.weight", weight))  # type: ignore[no-any-return]

    def _in_chunks(self, x: Value, heads: int, width: int) -> Value:
        """[1, T, channels] -> [groups, heads, chunks, rows, width], filled up with zeros."""
        op = self.graph.op
        rows = op("Pad", x, self._filling())
        sizes = self._constant([self.mixer.n_groups, heads, width])
        shape = op("Concat", self._index(-1), self._rows(), sizes, axis=0)
        return op("Transpose", op("Reshape", rows, shape), perm=[2, 3, 0, 1, 4])  # type: ignore[no-any-return]

    def _in_tokens(self, x: Value) -> Value:
        """The inverse of `_in_chunks`."""
        op = self.graph.op
        turned = op("Transpose", x, perm=[2, 3, 0, 1, 4])
        rows = self.graph.reshape(turned, [1, -1, self.mixer.size])
        return op("Slice", rows, self._index(0), self._count(), self._index(1))  # type: ignore[no-any-return]

    def _filling(self) -> Value:
        """How much `Pad` adds before and after each axis: up to whole chunks of tokens."""
        op, count, rows = self.graph.op, self._count(), self._rows()
        chunks = op("Div", op("Sub", op("Add", count, rows), self._index(1)), rows)
        missing = op("Sub", op("Mul", chunks, rows), count)
        return op("Concat", self._constant([0] * 4), missing, self._index(0), axis=0)  # type: ignore[no-any-return]

    def _count(self) -> Value:
        """The number of tokens [1]."""
        shape = self.graph.op("Shape", self.dialect.positions)
        return self.graph.op("Slice", shape, self._index(1), self._index(2))  # type: ignore[no-any-return]

    def _rows(self) -> Value:
        """The number of tokens in a chunk [1]."""
        return self.graph.op("Min", self._count(), self._index(_CHUNK))  # type: ignore[no-any-return]

    def _lower(self, compare: str, count: Value) -> Value:
        """Which columns are at most a row, or less than it: [count, count]."""
        op = self.graph.op
        number = op("Squeeze", count, self._index(0))
        scalars = (self.graph.constant(f"scalar.{one}", np.array(one, np.int64)) for one in (0, 1))
        zero, one = scalars
        indices = op("Range", zero, number, one)
        rows, columns = (self.graph.reshape(indices, shape) for shape in ([-1, 1], [1, -1]))
        return op(compare, rows, columns)  # type: ignore[no-any-return]

    def _ones(self, compare: str, count: Value) -> Value:
        """A product with it sums over the rows up to each."""
        return self.dialect.cast(self._lower(compare, count), "fp32")

    def _turned(self, x: Value) -> Value:
        """The last two of five axes swapped."""
        return self.graph.op("Transpose", x, perm=[0, 1, 2, 4, 3])  # type: ignore[no-any-return]

    def _split(self, x: Value, sizes: list[int]) -> tuple[Value, ...]:
        return self.graph.op("Split", x, self._constant(sizes), outputs=len(sizes), axis=-1)  # type: ignore[no-any-return]

    def _vector(self, name: str, tensor: torch.Tensor) -> Value:
        return write_floats(self.graph, f"{self.name}.{name}", tensor, "fp32")

    def _index(self, at: int) -> Value:
        return self.graph.constant(f"at.{at}", np.array([at], dtype=np.int64))

    def _constant(self, values: list[int]) -> Value:
        return self.graph.constant(f"mamba.{values}", np.array(values, dtype=np.int64))

    def _number(self, value: float) -> Value:
        return self.dialect.number(value, "fp32")

    def _wide(self, x: Value) -> Value:
        return x if self.dialect.activations == "fp32" else self.dialect.cast(x, "fp32")

    def _narrow(self, x: Value) -> Value:
        kind = self.dialect.activations
        return x if kind == "fp32" else self.dialect.cast(x, kind)
