"""Cut a decoder's graph at layer boundaries, into segments that are compiled one after the other.

Compiling takes memory for several copies of the weights, so its peak is that of the largest
segment. A value that crosses a boundary leaves one segment as an output and enters a later one as
an input. Masks and rotations, which depend on positions alone, are computed in each segment
instead: they are cheap, and then need no memory between segments.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import onnx
import onnx.shape_inference
import onnx_ir as ir

from edgelm.bundle import GraphSegment, TensorContract
from edgelm.devices.planner.memory.build_memory import MAX_SEGMENTS, cut, segments_needed
from edgelm.export.graph.builder import Graph, as_model

_WHOLE = "model.onnx"
# Inputs that every segment may have; tokens and the layers' state belong to one segment each.
_SHARED_INPUTS = frozenset({"positions", "past_length", "logits_positions", "cache_positions"})
# Two sets of numbers for the named sizes of inputs and outputs.
_SIZES = (
    {"B": 17, "T": 11, "P": 7, "capacity": 101},
    {"B": 19, "T": 13, "P": 5, "capacity": 103},
)
_DTYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "int64": ir.DataType.INT64,
    "bool": ir.DataType.BOOL,
}


class BuildMemory(NamedTuple):
    """The memory that an engine, such as `tensorrt-10.3`, may take while it compiles a graph."""

    engine: str
    available_bytes: int


# A number of segments, or the fewest that compile within some memory.
Segments = int | BuildMemory


class SavedGraph(NamedTuple):
    """A graph on disk: its file, or its segments in the order in which they run.

    `links` are the tensors that pass from one segment to a later one.
    """

    file: str
    segments: tuple[GraphSegment, ...] = ()
    links: tuple[TensorContract, ...] = ()


def save_graph(graph: Graph, wanted: Segments) -> SavedGraph:
    """Write a graph whole, or at most `wanted` segments of it.

    Segments are `model-1.onnx` and so on, which share the data file. They are as even as layers
    allow: the weights of the largest are as few as possible.
    """
    count = min(_count(graph, wanted), MAX_SEGMENTS)
    if count == 1:
        graph.save(_WHOLE)
        return SavedGraph(_WHOLE)
    model = graph.model()
    pieces = _pieces(graph, count)
    contracts = _contracts(model, [name for piece in pieces for name in _names(piece.sent)])
    segments = []
    for number, piece in enumerate(pieces, start=1):
        name = f"model-{number}.onnx"
        graph.save_model(as_model(_copy(piece, contracts, graph.opsets)), name)
        weights = _weight_bytes(piece.nodes)
        segments.append(GraphSegment(name, _names(piece.inputs), _names(piece.outputs), weights))
    return SavedGraph(segments[0].file, tuple(segments), tuple(contracts.values()))


def part_bytes(graph: Graph) -> list[int]:
    """Bytes of the weights of each part: what precedes the layers, every layer, what follows."""
    return [_weight_bytes(part) for part in _parts(graph)]


def _count(graph: Graph, wanted: Segments) -> int:
    if isinstance(wanted, int):
        return wanted
    needed = segments_needed(wanted.engine, part_bytes(graph), wanted.available_bytes)
    return needed or MAX_SEGMENTS  # where none is enough, what comes nearest


class _Piece(NamedTuple):
    """A segment, as nodes and values of the whole graph.

    inputs: the graph's own, then what earlier segments sent.
    outputs: the graph's own, then `sent`.
    sent: what later segments read.
    """

    nodes: list[ir.Node]
    inputs: list[ir.Value]
    outputs: list[ir.Value]
    sent: list[ir.Value]


def _parts(graph: Graph) -> list[Sequence[ir.Node]]:
    nodes, starts = graph.nodes, graph.part_starts
    ends = (*starts[1:], len(nodes))
    return [nodes[start:end] for start, end in zip(starts, ends, strict=True)]


def _weight_bytes(nodes: Iterable[ir.Node]) -> int:
    weights = {
        value.name: value.const_value.nbytes
        for node in nodes
        for value in node.inputs
        if value is not None and isinstance(value.const_value, ir.ExternalTensor)
    }
    return sum(weights.values())


def _pieces(graph: Graph, count: int) -> list[_Piece]:
    parts = _parts(graph)
    ranges = cut([_weight_bytes(part) for part in parts], count)
    groups = [[node for index in one for node in parts[index]] for one in ranges]
    positional = _positional(graph.nodes)
    read = [_read(group, positional) for group in groups]
    return [
        _piece(
            graph,
            _with_positional(group, positional),
            {value for later in read[number + 1 :] for value in later},
        )
        for number, group in enumerate(groups)
    ]


def _positional(nodes: Iterable[ir.Node]) -> dict[ir.Value, ir.Node]:
    """Values that follow from the shared inputs and constants alone, and the nodes they are of."""
    found: dict[ir.Value, ir.Node] = {}
    for node in nodes:
        if all(_is_shared(value) or value in found for value in node.inputs if value is not None):
            found |= dict.fromkeys(node.outputs, node)
    return found


def _is_shared(value: ir.Value) -> bool:
    return value.const_value is not None or value.name in _SHARED_INPUTS


def _read(nodes: Iterable[ir.Node], positional: Collection[ir.Value]) -> set[ir.Value]:
    """What nodes read of others, but for what each segment computes itself."""
    own = {value for node in nodes for value in node.outputs}
    return {
        value
        for node in nodes
        for value in node.inputs
        if value is not None and value.producer() is not None
        if value not in own and value not in positional
    }


def _with_positional(nodes: list[ir.Node], positional: dict[ir.Value, ir.Node]) -> list[ir.Node]:
    """Nodes, after those of other segments that give them masks and the like."""
    own, found = set(nodes), list[ir.Node]()
    waiting = list(nodes)
    while waiting:
        for value in waiting.pop().inputs:
            source = positional.get(value) if value is not None else None
            if source is not None and source not in own:
                own.add(source)
                found.append(source)
                waiting.append(source)
    order = {node: number for number, node in enumerate(dict.fromkeys(positional.values()))}
    return [*sorted(found, key=order.__getitem__), *nodes]


def _piece(graph: Graph, nodes: list[ir.Node], read_later: Collection[ir.Value]) -> _Piece:
    given = dict.fromkeys(value for node in nodes for value in node.outputs)
    taken = {
        value: None
        for node in nodes
        for value in node.inputs
        if value is not None and value.const_value is None and value not in given
    }
    own = [value for value in graph.inputs if value in taken]
    received = [value for value in taken if value.producer() is not None]
    sent = [value for value in given if value in read_later]
    outputs = [value for value in graph.outputs if value in given]
    others = [value for value in sent if value not in outputs]
    return _Piece(nodes, [*own, *received], [*outputs, *others], others)


def _copy(piece: _Piece, links: dict[str, TensorContract], opsets: dict[str, int]) -> ir.Graph:
    """The segment as a graph of its own, since a node belongs to one graph only."""
    copies: dict[ir.Value, ir.Value] = {}
    for value in (value for node in piece.nodes for value in (*node.inputs, *node.outputs)):
        if value is not None and value not in copies:
            copies[value] = _copy_value(value, links.get(str(value.name)))
    nodes = [
        ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else copies[value] for value in node.inputs],
            node.attributes,
            outputs=[copies[value] for value in node.outputs],
            name=node.name,
        )
        for node in piece.nodes
    ]
    return ir.Graph(
        [copies[value] for value in piece.inputs],
        [copies[value] for value in piece.outputs],
        nodes=nodes,
        initializers=[one for one in copies.values() if one.const_value is not None],
        opset_imports=opsets,
        name="decoder",
    )


def _copy_value(value: ir.Value, link: TensorContract | None) -> ir.Value:
    copied = ir.Value(
        name=value.name, type=value.type, shape=value.shape, const_value=value.const_value
    )
    if link:
        copied.type = ir.TensorType(_DTYPES[link.dtype])
        copied.shape = ir.Shape(link.shape)
    return copied


def _contracts(model: ir.Model, names: Collection[str]) -> dict[str, TensorContract]:
    """Types and shapes of values inside a graph.

    Inference loses named sizes in a Reshape, but not numbers: it is done for two sets of sizes,
    and a size that differs between the two is the named one.
    """
    if not names:
        return {}
    one, other = (_infer(ir.to_proto(model), sizes) for sizes in _SIZES)
    by_pair = {(size, _SIZES[1][name]): name for name, size in _SIZES[0].items()}
    contracts = {}
    for name in names:
        pairs = zip(one[name].shape.dim, other[name].shape.dim, strict=True)
        sizes = [(first.dim_value, second.dim_value) for first, second in pairs]
        assert all(map(all, sizes)), f"{name} has no known shape"
        shape = tuple(by_pair.get(pair, pair[0]) for pair in sizes)
        contracts[name] = TensorContract(name, _dtype(one[name].elem_type), shape)
    return contracts


def _infer(model: onnx.ModelProto, sizes: Mapping[str, int]) -> dict[str, onnx.TypeProto.Tensor]:
    """Types of the values inside a graph, for numbers in place of its named sizes."""
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = sizes[dim.dim_param]
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    return {one.name: one.type.tensor_type for one in inferred.graph.value_info}


def _dtype(kind: int) -> str:
    return next(name for name, dtype in _DTYPES.items() if dtype == kind)


def _names(values: Iterable[ir.Value]) -> tuple[str, ...]:
    return tuple(str(value.name) for value in values)
