"""A small typed builder for ONNX graphs, over onnx_ir, whose weights go straight to disk.

`Graph.weight` appends a tensor to the external data file and keeps only its offset, so that
building a graph needs memory for one tensor at a time, whatever the size of the model.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgelm import __version__

_ALIGNMENT = 64  # a cache line; mapping needs no more, since the reader aligns to pages itself
_DTYPES = {
    np.dtype(np.float32): ir.DataType.FLOAT,
    np.dtype(np.float16): ir.DataType.FLOAT16,
    np.dtype(np.uint8): ir.DataType.UINT8,
    np.dtype(np.int8): ir.DataType.INT8,
    np.dtype(np.int32): ir.DataType.INT32,
    np.dtype(np.int64): ir.DataType.INT64,
}


def as_model(graph: ir.Graph) -> ir.Model:
    """A graph as what a file holds."""
    return ir.Model(graph, ir_version=10, producer_name="edgelm", producer_version=__version__)


class Boundary(NamedTuple):
    """Where a graph is cut: nodes from `position` on read what was `given` before as `taken`."""

    position: int
    given: ir.Value
    taken: ir.Value


class Graph:
    """An ONNX graph under construction, and the file its weights are appended to.

    Without a folder nothing is written: `data_bytes` is then what the file would have.
    """

    def __init__(self, folder: Path | None, *, opsets: dict[str, int]) -> None:
        self.folder = folder
        self.opsets = opsets
        self.data_name = "model.onnx.data"
        self.weight_bytes = 0
        self.data_bytes = 0
        self._data = (folder / self.data_name).open("wb") if folder else None
        self._nodes: list[ir.Node] = []
        self._scope: list[str] = []
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._initializers: dict[str, ir.Value] = {}
        self._part_starts: list[int] = []
        self._boundaries: list[Boundary] = []

    def start_part(self) -> None:
        """What follows is a part of its own, such as a layer: the graph may be cut before it."""
        assert not self._scope, "a part cannot start inside a branch"
        self._part_starts.append(len(self._nodes))

    def boundary(
        self, value: ir.Value, name: str, dtype: ir.DataType, shape: tuple[int | str, ...]
    ) -> ir.Value:
        """Cut the graph here; return the value, the only one that passes, for what follows."""
        assert not self._scope, "a graph is not cut inside a branch"
        values = value, ir.Value(name=name)
        for one in values:
            one.name, one.type, one.shape = name, ir.TensorType(dtype), ir.Shape(shape)
        self._boundaries.append(Boundary(len(self._nodes), *values))
        return values[1]

    @property
    def boundaries(self) -> tuple[Boundary, ...]:
        """Where the graph is cut, in the order of its nodes."""
        return tuple(self._boundaries)

    @property
    def part_starts(self) -> tuple[int, ...]:
        """Indices of the nodes that parts start with; the first part starts at 0."""
        return tuple(sorted({0, *self._part_starts}))

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """All nodes, in the order in which they run."""
        return tuple(self._nodes)

    @property
    def inputs(self) -> tuple[ir.Value, ...]:
        """The graph's inputs, in the order of their declaration."""
        return tuple(self._inputs)

    @property
    def outputs(self) -> tuple[ir.Value, ...]:
        """The graph's outputs, in the order of their declaration."""
        return tuple(self._outputs)

    def input(self, name: str, dtype: ir.DataType, shape: tuple[int | str, ...]) -> ir.Value:
        """Declare a graph input."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self._inputs.append(value)
        return value

    def optional_input(
        self, name: str, shape: tuple[int | str, int | str], default: npt.NDArray[np.float32]
    ) -> ir.Value:
        """Declare an fp32 matrix that a run may leave out: it is then the default."""
        value = self._register(name, ir.Tensor(default, name=name))
        value.shape = ir.Shape(shape)
        self._inputs.append(value)
        return value

    def output(
        self, value: ir.Value, name: str, dtype: ir.DataType, shape: tuple[int | str, ...]
    ) -> ir.Value:
        """Declare a value to be a graph output, under this name."""
        value.name = name
        value.type = ir.TensorType(dtype)
        value.shape = ir.Shape(shape)
        self._outputs.append(value)
        return value

    def op(
        self,
        kind: str,
        *inputs: ir.Value | None,
        domain: str = "",
        outputs: int = 1,
        name: str | None = None,
        **attributes: Any,
    ) -> Any:
        """Add a node; returns its value, or a tuple of values if it has several."""
        given = {key: value for key, value in attributes.items() if value is not None}
        node = ir.node(
            kind, inputs, attributes=given, domain=domain, num_outputs=outputs, name=name
        )
        for index, value in enumerate(node.outputs):
            path = ".".join([*self._scope, f"{name or kind}.{len(self._nodes)}"])
            value.name = path + (f".{index}" if index else "")
        self._nodes.append(node)
        return node.outputs[0] if outputs == 1 else tuple(node.outputs)

    def reshape(self, x: ir.Value, shape: Sequence[int]) -> ir.Value:
        """A value in another shape; 0 keeps a size, -1 is what remains."""
        constant = self.constant(f"shape.{list(shape)}", np.array(shape, dtype=np.int64))
        return self.op("Reshape", x, constant)  # type: ignore[no-any-return]

    def branch(
        self,
        condition: ir.Value,
        then: Callable[[], tuple[ir.Value, ...]],
        otherwise: Callable[[], tuple[ir.Value, ...]],
        *,
        name: str,
    ) -> tuple[ir.Value, ...]:
        """An `If` node: only the branch that is taken runs; both may read any earlier value."""
        bodies = {
            "then_branch": self._body(then, f"{name}.then"),
            "else_branch": self._body(otherwise, f"{name}.else"),
        }
        count = len(bodies["then_branch"].outputs)
        attributes: dict[str, Any] = {**bodies}
        values = self.op("If", condition, outputs=count, name=name, **attributes)
        return values if isinstance(values, tuple) else (values,)

    def scan(
        self,
        state: ir.Value,
        rows: Sequence[ir.Value],
        step: Callable[..., tuple[ir.Value, ir.Value]],
        *,
        name: str,
    ) -> tuple[ir.Value, ir.Value]:
        """A `Scan` node over the first axis of `rows`, all fp32.

        `step(state, *row)` returns the next state and an output, and reads nothing else.

        Returns:
            The last state, and the outputs stacked along a new first axis.
        """
        names = ["state", *(f"row.{number}" for number in range(len(rows)))]
        formal = [
            ir.Value(name=f"{name}.{one}", type=ir.TensorType(ir.DataType.FLOAT)) for one in names
        ]
        body = self._body(lambda: step(*formal), name, formal)
        attributes: dict[str, Any] = {"body": body, "num_scan_inputs": len(rows)}
        last, stacked = self.op("Scan", state, *rows, outputs=2, name=name, **attributes)
        return last, stacked

    def _body(
        self,
        build: Callable[[], tuple[ir.Value, ...]],
        name: str,
        inputs: Sequence[ir.Value] = (),
    ) -> ir.Graph:
        outer, self._nodes = self._nodes, []
        self._scope.append(name)
        try:
            outputs = build()
            return ir.Graph(inputs, outputs, nodes=self._nodes, name=name)
        finally:
            self._nodes = outer
            self._scope.pop()

    def constant(self, name: str, array: npt.NDArray[Any]) -> ir.Value:
        """A small tensor inside the graph file; one value per name."""
        if name not in self._initializers:
            tensor = ir.Tensor(np.ascontiguousarray(array), name=name)
            self._register(name, tensor)
        return self._initializers[name]

    def index(self, number: int) -> ir.Value:
        """A number without axes; a Gather at it drops the axis, and at a `constant` keeps it."""
        name = f"index.{number}"
        if name not in self._initializers:
            self._register(name, ir.Tensor(np.array(number, dtype=np.int64), name=name))
        return self._initializers[name]

    def weight(
        self,
        name: str,
        array: npt.NDArray[Any],
        dtype: ir.DataType | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> ir.Value:
        """Append a tensor to the data file.

        `dtype` and `shape` give the meaning of its bytes where numpy has no such type: bfloat16 as
        uint16, float8 as uint8, two 4-bit elements a byte (the first in the low half).
        """
        array = np.ascontiguousarray(array)
        self._append(b"\0" * (-self.data_bytes % _ALIGNMENT))
        offset = self.data_bytes
        self._append(array.data)
        self.weight_bytes += array.nbytes
        dtype = _DTYPES[array.dtype] if dtype is None else dtype
        return self._external(name, dtype, shape or array.shape, offset, array.nbytes)

    def keep_unpacked(self, weight: ir.Value) -> None:
        """Let ONNX Runtime read a weight from its mapped file, not from a packed copy.

        It packs constants only, and a weight that a run may replace is none.
        """
        if weight not in self._inputs:
            self._inputs.append(weight)

    def view(self, name: str, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        """The bytes of an earlier `weight` under another shape."""
        tensor = value.const_value
        assert isinstance(tensor, ir.ExternalTensor)
        assert tensor.offset is not None
        assert tensor.length is not None
        return self._external(name, tensor.dtype, shape, tensor.offset, tensor.length)

    def close(self) -> None:
        """Close the data file without writing the graph."""
        if self._data:
            self._data.close()

    def save(self, name: str = "model.onnx") -> None:
        """Write the graph file and close the data file."""
        self.save_model(self.model(), name)

    def save_model(self, model: ir.Model, name: str) -> None:
        """Write a graph file over the data file, and close that."""
        assert self.folder, "a graph without a folder cannot be written"
        self.close()
        ir.save(model, self.folder / name)

    def model(self) -> ir.Model:
        """The whole graph; nothing can be added to it afterwards."""
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports=self.opsets,
            name="decoder",
        )
        return as_model(graph)

    def _append(self, data: bytes | memoryview) -> None:
        self.data_bytes += len(data) if isinstance(data, bytes) else data.nbytes
        if self._data:
            self._data.write(data)

    def _external(
        self, name: str, dtype: ir.DataType, shape: tuple[int, ...], offset: int, length: int
    ) -> ir.Value:
        tensor = ir.ExternalTensor(
            self.data_name,
            offset,
            length,
            dtype,
            shape=ir.Shape(shape),
            name=name,
            base_dir=self.folder or "",
        )
        return self._register(name, tensor)

    def _register(self, name: str, tensor: "ir.Tensor[Any] | ir.ExternalTensor") -> ir.Value:
        assert name not in self._initializers, f"two initializers named {name}"
        value = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=tensor.shape
            if isinstance(tensor.shape, ir.Shape)
            else ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )
        self._initializers[name] = value
        return value
