"""Caches of several sequences in one piece of memory, on any device.

Each tensor is [places, heads, rows, head_dim], and a sequence has a place. A run over one sequence
is bound to that place, a run over several to neighboring places: both are contiguous, so that no
run copies a cache. All places have the same number of rows. Layers that hold only a window have
fewer rows, whose number does not grow.
"""

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from edgelm.bundle import CacheContract

# Keys and values by layer: arrays, or addresses on a GPU. Their first axis, the places, is sliced.
CacheTensors = list[tuple[Any, Any]]


class CacheMemory(NamedTuple):
    """Where the caches are: keys and values by layer, their rows, and the index of each place."""

    arrays: CacheTensors
    rows: int
    indices: tuple[int, ...]

    def views(self, first: int, count: int) -> CacheTensors:
        """Keys and values [count, heads, rows, head_dim] of neighbors, by layer."""
        end = first + count
        return [(key[first:end], value[first:end]) for key, value in self.arrays]


class Move(NamedTuple):
    """The first rows of a cache that are copied: from one place of a tensor to another's."""

    source: int
    target: int
    rows: int


class PlacePool:
    """Which sequence has which place; a subclass has the memory.

    Args:
        cache: what the graph says of its cache.
        rows: tokens that each place holds at first.

    `memory` is replaced, never changed, where caches move. Whoever runs the engine, or reads or
    writes rows, holds `lock` meanwhile.
    """

    def __init__(self, cache: CacheContract, rows: int) -> None:
        self._cache = cache
        self.memory = CacheMemory([], rows, ())
        # Rows of each place that may hold something; None where nobody has the place.
        self._written: list[int | None] = []
        self.lock = threading.RLock()

    def allocate(self, places: int, rows: int) -> CacheTensors:
        """New memory for caches, zeroed.

        Raises:
            DoesNotFit: there is none.
        """
        raise NotImplementedError

    def copy(self, source: Any, target: Any, moves: Sequence[Move]) -> None:
        """Copy rows from one tensor to another; they may be read once `settle` returns."""
        raise NotImplementedError

    def settle(self) -> None:
        """Wait until all copies are done."""

    def join(self) -> int:
        """Take a place; the others may move.

        Raises:
            DoesNotFit: there is no memory for it.
        """
        with self.lock:
            if None in self._written:
                place = self._written.index(None)
                self._written[place] = 0
                return place
            indices = (*self.memory.indices, len(self._written))
            self.memory = self._moved(self.memory.rows, indices)
            self._written.append(0)
            return len(self._written) - 1

    def leave(self, place: int) -> None:
        """Give a place back; the last one releases the memory."""
        with self.lock:
            self._written[place] = None
            if all(one is None for one in self._written):
                self._written = []
                self.memory = CacheMemory([], self.memory.rows, ())

    def view(self, place: int) -> CacheTensors:
        """Keys and values of a place [1, heads, rows, head_dim], by layer."""
        return self.memory.views(self.memory.indices[place], 1)

    def wrote(self, place: int, rows: int) -> None:
        """Take note that the first `rows` rows of a place may hold something."""
        self._written[place] = max(self._written[place] or 0, rows)

    def grow(self, rows: int) -> None:
        """Give every place at least this many rows; without memory for it, all stays as it is.

        Raises:
            DoesNotFit: there is no memory for it.
        """
        if rows > self.memory.rows:  # else a sibling has grown it already
            self.memory = self._moved(rows, self.memory.indices)

    def bring_together(self, places: Sequence[int]) -> None:
        """Make places neighbors, in this order, before all others.

        Raises:
            DoesNotFit: there is no memory for a copy of all caches.
        """
        others = [place for place in range(len(self._written)) if place not in places]
        order = [*places, *others]
        indices = tuple(order.index(place) for place in range(len(order)))
        self.memory = self._moved(self.memory.rows, indices)

    def _moved(self, rows: int, indices: tuple[int, ...]) -> CacheMemory:
        """A copy of all that was written, in other memory and another order."""
        old, arrays = self.memory, self.allocate(len(indices), rows)
        moves = [
            Move(old.indices[place], indices[place], written)
            for place, written in enumerate(self._written)
            if written
        ]
        for number, (pair, copies) in enumerate(zip(old.arrays, arrays, strict=False)):
            if self._cache.layers[number].rows is not None and indices == old.indices:
                arrays[number] = pair  # nothing about it changes
                continue
            for tensor, other in zip(pair, copies, strict=True):
                self.copy(tensor, other, moves)
        self.settle()
        return CacheMemory(arrays, rows, indices)
