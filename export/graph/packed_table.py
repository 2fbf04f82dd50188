"""Rows of a quantized table, for engines that gather no integers narrower than 32 bits.

As of 1.7 TensorRT-RTX refuses a Gather of int8 or int4 constants: those may only be dequantized,
which would widen the whole table. A table of words of 32 bits is gathered like any other, and its
levels are taken out of the few rows that a step needs.
"""

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from edgelm.export.graph.builder import Graph
from edgelm.export.graph.dtypes import DTYPES, Activations, write_floats
from edgelm.quantize.rtn import Quantized

Value = ir.Value
_WORD = 32  # bits


def fits_words(columns: int, bits: int) -> bool:
    """Whether rows of this many levels are whole words."""
    return columns % (_WORD // bits) == 0


def gather_rows(
    graph: Graph, name: str, table: Quantized, columns: int, tokens: Value, activations: Activations
) -> Value:
    """The tokens' rows [1, T, columns] of a table that is quantized without zero points."""
    words = graph.weight(f"{name}.words", packed_words(table, columns))
    scales = write_floats(graph, f"{name}.scales", table.scales, activations)
    rows = graph.op("Gather", words, tokens, name=name, axis=0)
    factors = graph.op("Gather", scales, tokens, axis=0)
    levels = graph.op("Cast", _levels(graph, rows, table.bits), to=DTYPES[activations].value)
    middle = np.array(table.middle, dtype=DTYPES[activations].numpy())
    centered = graph.op("Sub", levels, graph.constant(f"{name}.middle", middle))
    blocks = graph.reshape(centered, (0, 0, -1, table.group_size))
    scaled = graph.op("Mul", blocks, graph.reshape(factors, (0, 0, -1, 1)))
    return graph.reshape(scaled, (0, 0, columns))


def packed_words(table: Quantized, columns: int) -> npt.NDArray[np.int32]:
    """Levels [rows, columns] in words of 32 bits, the first one in the lowest bits."""
    levels = table.levels.flatten(1)[:, :columns].to(torch.uint8)
    if table.bits == 4:
        levels = levels[:, ::2] | (levels[:, 1::2] << 4)
    return np.ascontiguousarray(levels.numpy()).view("<i4")


def _levels(graph: Graph, words: Value, bits: int) -> Value:
    """The levels [1, T, W, 32 / bits] in words [1, T, W], as int32.

    Division of negative numbers rounds upwards: the sign bit is taken off first, and given back to
    the last level.
    """
    op, count = graph.op, _WORD // bits
    powers = np.array([1 << (bits * at) for at in range(count)], dtype=np.int32)
    sign = np.array([0] * (count - 1) + [1 << (bits - 1)], dtype=np.int32)
    half, zero = _integer(graph, 1 << 30), _integer(graph, 0)
    words = graph.reshape(words, (0, 0, -1, 1))
    negative = op("Less", words, zero)
    positive = op("Where", negative, op("Add", op("Add", words, half), half), words)
    quotients = op("Div", positive, graph.constant(f"words.powers.{bits}", powers))
    low = op("Mod", quotients, _integer(graph, 1 << bits))
    high = op("Where", negative, graph.constant(f"words.sign.{bits}", sign), zero)
    return op("Add", low, high)  # type: ignore[no-any-return]


def _integer(graph: Graph, value: int) -> Value:
    return graph.constant(f"int32.{value}", np.array(value, dtype=np.int32))
