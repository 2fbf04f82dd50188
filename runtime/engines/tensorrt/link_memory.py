"""GPU memory for what passes between the segments of a graph, shared by those that never meet."""

import math
from collections.abc import Iterable, Mapping

from edgelm.bundle import GraphContract, TensorContract
from edgelm.runtime.engines.cuda import Memory

_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "bool": 1}


class LinkMemory:
    """Addresses of a graph's links.

    A link's memory is free again once the last segment that reads it has run, so that a row of
    segments takes as much as two or three of them.

    Args:
        graph: the graph, with its segments and links.
        sizes: the largest value of each named dimension.
    """

    def __init__(self, graph: GraphContract, sizes: Mapping[str, int]) -> None:
        self.addresses: dict[str, int] = {}
        self._blocks: list[Memory] = []
        self._free: list[Memory] = []
        held: dict[str, Memory] = {}
        links = {link.name: link for link in graph.links}
        last_reader = {name: part.file for part in graph.parts for name in part.inputs}
        for part in graph.parts:
            for name in part.outputs:
                if name in links:
                    held[name] = self._take(_bytes(links[name], sizes))
                    self.addresses[name] = held[name].address
            self._free += [
                held.pop(name)
                for name in part.inputs
                if name in held and last_reader[name] == part.file
            ]

    def free(self) -> None:
        """Give it back."""
        for block in self._blocks:
            block.free()

    def _take(self, size: int) -> Memory:
        fitting = [block for block in self._free if block.size >= size]
        if fitting:
            smallest = min(fitting, key=lambda block: block.size)
            self._free.remove(smallest)
            return smallest
        self._blocks.append(Memory(size, "what passes between the segments"))
        return self._blocks[-1]


def resolve(shape: Iterable[int | str], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A shape with numbers in place of its named dimensions."""
    return tuple(size if isinstance(size, int) else sizes[size] for size in shape)


def _bytes(link: TensorContract, sizes: Mapping[str, int]) -> int:
    return _ITEM_BYTES[link.dtype] * math.prod(resolve(link.shape, sizes))
