"""Tables over positions as weights of a graph, each kind once."""

import msgspec
import onnx_ir as ir
import torch

from edgelm.export.graph.builder import Graph
from edgelm.export.graph.dtypes import Activations, write_floats
from edgelm.spec.decoder import DecoderSpec, Rope
from edgelm.spec.rope import padded_tables, query_factors, rotary_tables

Value = ir.Value


class RotaryTables:
    """Cosines and sines [context, width] in the type of the activations."""

    def __init__(
        self, graph: Graph, spec: DecoderSpec, context: int, activations: Activations
    ) -> None:
        self.graph = graph
        self.spec = spec
        self.context = context
        self.activations = activations
        self._written: dict[bytes, tuple[Value, Value]] = {}

    def width(self, rope: Rope) -> int:
        """Columns of the tables: half of the channels that the graph rotates."""
        return self.spec.rotary_width(rope)

    def __getitem__(self, rope: Rope) -> tuple[Value, Value]:
        """The tables of one kind of rotation."""
        key = msgspec.json.encode(rope)
        if key not in self._written:
            tables = padded_tables(
                rotary_tables(rope, self.context, self.spec.max_position_embeddings),
                self.width(rope),
            )
            number = len(self._written)
            cos, sin = (
                write_floats(
                    self.graph, f"rotary.{number}.{name}", torch.from_numpy(table), self.activations
                )
                for name, table in zip(("cos", "sin"), tables, strict=True)
            )
            self._written[key] = cos, sin
        return self._written[key]


class QueryFactors:
    """Factors on queries [context, 1] in the type of the activations; None where all are one."""

    def __init__(self, graph: Graph, context: int, activations: Activations) -> None:
        self.graph = graph
        self.context = context
        self.activations = activations
        self._written: dict[tuple[float, int], Value] = {}

    def __getitem__(self, growth: tuple[float, int] | None) -> Value | None:
        """The table of one kind of growth (see LayerSpec)."""
        factors = query_factors(growth, self.context)
        if growth is None or factors is None:
            return None
        if growth not in self._written:
            column = torch.from_numpy(factors)[:, None]
            name = f"query_factors.{len(self._written)}"
            self._written[growth] = write_floats(self.graph, name, column, self.activations)
        return self._written[growth]
