"""Optimization profiles: the range of every dynamic size of what a graph, or a segment, takes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from edgelm.bundle import GraphContract, GraphSegment
from edgelm.runtime.engines.growth import rows_for

Shape = tuple[int | str, ...]


class Sizes(NamedTuple):
    """The smallest, the most usual and the largest value of a named dimension."""

    smallest: int
    usual: int
    largest: int


# Rows that most conversations take.
_USUAL_ROWS = 1024


def add_profile(
    builder: Any, config: Any, graph: GraphContract, part: GraphSegment, tokens: int, context: int
) -> None:
    """Add a profile for runs of up to `tokens` tokens, most often of that many.

    The cache may have any size that it takes on its way to `context` rows.
    """
    rows = Sizes(*(rows_for(count, context) for count in (1, _USUAL_ROWS, context)))
    sizes = {"T": Sizes(1, tokens, tokens), "P": Sizes(1, 1, tokens), "capacity": rows}
    sizes["B"] = Sizes(1, 1, 1)  # sessions run one sequence at a time
    profile = builder.create_optimization_profile()
    for name, shape in input_shapes(graph, part).items():
        if not all(isinstance(size, int) for size in shape):
            profile.set_shape(name, *_range(shape, sizes))
    config.add_optimization_profile(profile)


def input_shapes(graph: GraphContract, part: GraphSegment) -> dict[str, Shape]:
    """The shape of every input of a part; named dimensions are strings."""
    shapes: dict[str, Shape] = {
        one.name: one.shape for one in (*graph.inputs.values(), *graph.links)
    }
    cache = graph.cache
    rows = cache.capacity or "capacity"
    batch: int | str = "B" if graph.takes_batches else 1
    for layer in cache.layers:
        heads, dim = cache.heads(layer)
        for name in (layer.past_key, layer.past_value):
            shapes[name] = (batch, heads, rows, dim)
        # Which a later segment may read.
        for name in (layer.present_key, layer.present_value):
            shapes[name] = (batch, heads, "T" if cache.update == "append" else rows, dim)
    for state in cache.states:
        shapes[state.past] = (1, *state.shape)
    return {name: shapes[name] for name in part.inputs}


def _range(shape: Shape, sizes: Mapping[str, Sizes]) -> list[tuple[int, ...]]:
    """The shape at the smallest, the most usual and the largest sizes."""
    return [
        tuple(size if isinstance(size, int) else sizes[size][which] for size in shape)
        for which in range(len(Sizes._fields))
    ]
