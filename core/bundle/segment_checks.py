"""Consistency checks of a graph's segments."""

from edgelm.bundle.manifest import GraphContract, TensorContract

_LINK_TYPES = frozenset({"float32", "float16", "bfloat16", "int64", "bool"})
_LINK_SIZES = frozenset({"T", "P"})
_MAX_SIZE = 1 << 24


def check_segments(graph: GraphContract) -> None:
    """Raise ValueError unless each input of a segment is there before the segment runs.

    Every input of the graph has to be taken, and every output has to be given once.
    """
    if not graph.segments:
        if graph.links:
            raise ValueError("graph.links has entries, but graph.segments is empty")
        return
    if graph.segments[0].file != graph.file:
        raise ValueError(
            f"graph.file is {graph.file!r}, expected the first of graph.segments, "
            f"{graph.segments[0].file!r}"
        )
    files = [segment.file for segment in graph.segments]
    if len(set(files)) < len(files):
        raise ValueError("two of graph.segments have the same file, expected different ones")
    for link in graph.links:
        _check_link(link)
    _check_order(graph)


def _check_link(link: TensorContract) -> None:
    for size in link.shape:
        known = size in _LINK_SIZES if isinstance(size, str) else 1 <= size <= _MAX_SIZE
        if not known:
            raise ValueError(
                f"graph.links: {link.name!r} has the size {size!r}, expected 1 to {_MAX_SIZE} or "
                f"one of {', '.join(sorted(_LINK_SIZES))}"
            )
    if link.dtype not in _LINK_TYPES:
        raise ValueError(
            f"graph.links: {link.name!r} is of type {link.dtype!r}, expected one of "
            f"{', '.join(sorted(_LINK_TYPES))}"
        )


def _check_order(graph: GraphContract) -> None:
    links = {link.name for link in graph.links}
    inputs, outputs = set(graph.input_names), set(graph.output_names) | links
    given, taken = set[str](), set[str]()
    for segment in graph.segments:
        for name in segment.inputs:
            if name not in inputs and name not in given:
                raise ValueError(
                    f"{segment.file} has the input {name!r}, which is neither an input of the "
                    "graph nor an output of an earlier segment"
                )
        for name in segment.outputs:
            if name not in outputs or name in given:
                raise ValueError(
                    f"{segment.file} has the output {name!r}, which is not an output or a link of "
                    "the graph, or is also an output of an earlier segment"
                )
        taken |= set(segment.inputs)
        given |= set(segment.outputs)
    missing = sorted((inputs | links) - taken) + sorted(outputs - given)
    if missing:
        raise ValueError(f"no segment has the tensor {missing[0]!r}")
