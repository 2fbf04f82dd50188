"""Write a graph that was cut while it was built, as files that run one after the other.

Unlike the segments of engines that compile (edgelm.export.graph.segments), which are cut where
their weights balance, its pieces are cut where another graph takes the place of the middle one.
"""

from collections.abc import Collection, Iterator, Sequence

import onnx_ir as ir

from edgelm.bundle import GraphSegment, TensorContract
from edgelm.export.graph.builder import Graph, as_model
from edgelm.export.graph.segments import SavedGraph

_DTYPES = {ir.DataType.FLOAT: "float32"}


def save_cut(graph: Graph) -> SavedGraph:
    """Write a graph, or its pieces as `model-1.onnx` and so on, which share the data file."""
    if not graph.boundaries:
        graph.save()
        return SavedGraph("model.onnx")
    ends = [*(boundary.position for boundary in graph.boundaries), len(graph.nodes)]
    parts = [graph.nodes[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    used = [set(_used(nodes)) for nodes in parts]
    # Inputs that no node reads are declared all the same: by the layers.
    used[parts.index(max(parts, key=len))] |= set(graph.inputs).difference(*used)
    given = [*([one.given] for one in graph.boundaries), []]
    taken = [[], *([one.taken] for one in graph.boundaries)]
    segments = tuple(
        _save_piece(graph, f"model-{number}.onnx", *piece)
        for number, piece in enumerate(zip(parts, used, taken, given, strict=True), start=1)
    )
    links = tuple(_link(one.given) for one in graph.boundaries)
    return SavedGraph(segments[0].file, segments, links)


def _save_piece(
    graph: Graph,
    name: str,
    nodes: Sequence[ir.Node],
    used: Collection[ir.Value],
    taken: Sequence[ir.Value],
    given: Sequence[ir.Value],
) -> GraphSegment:
    """Write nodes that take and give values at boundaries, and use others of the graph."""
    made = {value for node in nodes for value in node.outputs}
    # A value belongs to one graph, and those outside of nodes may be in several: names count.
    outside = {value: _copy(value) for value in used if value.producer() is None}
    constants = [value for value in outside if value.const_value is not None]
    inputs = [value for value in graph.inputs if value in used]
    outputs = [value for value in graph.outputs if value in made]
    piece = ir.Graph(
        [*(outside[value] for value in inputs), *taken],
        [*outputs, *given],
        nodes=nodes,
        initializers=sorted((outside[value] for value in constants), key=lambda one: str(one.name)),
        opset_imports=graph.opsets,
        name="decoder",
    )
    graph.save_model(as_model(piece), name)
    external = (value.const_value for value in constants)
    return GraphSegment(
        name,
        _names([*(value for value in inputs if value.const_value is None), *taken]),
        _names([*outputs, *given]),
        sum(one.nbytes for one in external if isinstance(one, ir.ExternalTensor)),
    )


def _used(nodes: Sequence[ir.Node]) -> Iterator[ir.Value]:
    """What nodes read, those of branches included."""
    for node in nodes:
        yield from (value for value in node.inputs if value is not None)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                body: ir.Graph = attribute.value
                yield from _used(list(body))
                yield from body.outputs


def _copy(value: ir.Value) -> ir.Value:
    return ir.Value(
        name=value.name, type=value.type, shape=value.shape, const_value=value.const_value
    )


def _link(value: ir.Value) -> TensorContract:
    assert value.name, "a boundary has a name"
    assert value.dtype is not None, "a boundary has a type"
    assert value.shape is not None, "a boundary has a shape"
    sizes = (size if isinstance(size, int) else str(size) for size in value.shape)
    return TensorContract(value.name, _DTYPES[value.dtype], tuple(sizes))


def _names(values: Sequence[ir.Value]) -> tuple[str, ...]:
    return tuple(str(value.name) for value in values)
