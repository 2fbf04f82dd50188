"""How far a cache has grown: in powers of two, so that a step reads at most twice what it has seen.

A session with a long context then takes memory, and time per token, for what it uses. Growing
copies the cache; as each copy is twice the one before, all copies together cost less than the last
cache holds.
"""

from edgelm.bundle import GraphContract

MIN_ROWS = 256  # a smaller cache would be outgrown by the first prompt


def rows_for(tokens: int, largest: int) -> int:
    """Rows of a cache for this many tokens, at most `largest`."""
    return min(largest, max(MIN_ROWS, 1 << max(0, tokens - 1).bit_length()))


def first_rows(graph: GraphContract, capacity: int) -> int:
    """Rows that attention reads at first: all of them in a graph that cannot read fewer."""
    grows = graph.cache.capacity is None or "cache_positions" in graph.inputs
    return rows_for(1, capacity) if grows else capacity


def rows_read(graph: GraphContract, tokens: int, capacity: int) -> int:
    """Rows that attention is given to read for this many tokens; 0 where the kernel knows itself.

    Those of a graph with `cache_positions`, which has the size of a cache that grew so far.
    """
    return rows_for(tokens, capacity) if "cache_positions" in graph.inputs else 0
