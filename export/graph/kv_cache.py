"""The key-value cache at a graph's edge: what every dialect declares alike."""

import onnx_ir as ir

from edgelm.bundle import CacheLayer
from edgelm.export.graph.builder import Graph
from edgelm.spec.decoder import DecoderSpec

Value = ir.Value
_KINDS = ("key", "value")


class KvCacheIO:
    """Past as inputs and present as outputs, [1, kv_heads, rows, head_dim] a layer.

    Args:
        graph: where they are declared.
        spec: the decoder.
        dtype: of the cache.
        past_rows: rows of past; a string leaves them open.
        present_rows: rows of present: the same, or only the new ones.
    """

    def __init__(
        self,
        graph: Graph,
        spec: DecoderSpec,
        dtype: ir.DataType,
        *,
        past_rows: int | str,
        present_rows: int | str,
    ) -> None:
        self.graph = graph
        self.spec = spec
        self.dtype = dtype
        self.past_rows = past_rows
        self.present_rows = present_rows
        self.layers: list[CacheLayer] = []

    def past(self, index: int) -> tuple[Value, Value]:
        """Declare a layer's keys and values as inputs."""
        key, value = (
            self.graph.input(f"past.{index}.{kind}", self.dtype, self._shape(self.past_rows))
            for kind in _KINDS
        )
        return key, value

    def present(self, index: int, key: Value, value: Value) -> None:
        """Declare what follows `past` as outputs."""
        shape = self._shape(self.present_rows)
        for kind, tensor in zip(_KINDS, (key, value), strict=True):
            self.graph.output(tensor, f"present.{index}.{kind}", self.dtype, shape)
        names = (f"{when}.{index}.{kind}" for when in ("past", "present") for kind in _KINDS)
        self.layers.append(CacheLayer(*names))

    def _shape(self, rows: int | str) -> tuple[int | str, ...]:
        return (1, self.spec.num_key_value_heads, rows, self.spec.head_dim)
