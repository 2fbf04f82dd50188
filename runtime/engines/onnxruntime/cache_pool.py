"""The key-value caches of an engine and its siblings, in one piece of memory.

Each tensor is [places, heads, rows, head_dim], and a sequence has a place. A run over one sequence
is bound to that place, a run over several to neighboring places: both are contiguous, so that no
run copies a cache. All places have the same number of rows; rows that were never written take no
memory, since the system gives zeroed pages on the first write. Layers that hold only a window have
fewer rows, whose number does not grow.
"""

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgelm.bundle import CacheContract
from edgelm.errors import BadBundle, DoesNotFit

# numpy has no bfloat16: its bits travel as uint16.
_DTYPES = {"fp32": np.float32, "fp16": np.float16, "bf16": np.uint16, "int8": np.int8}
CacheArrays = list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]


class CacheMemory(NamedTuple):
    """Where the caches are: keys and values by layer, their rows, and the index of each place."""

    arrays: CacheArrays
    rows: int
    indices: tuple[int, ...]

    def views(self, first: int, count: int) -> CacheArrays:
        """Keys and values [count, heads, rows, head_dim] of neighbors, by layer."""
        end = first + count
        return [(key[first:end], value[first:end]) for key, value in self.arrays]


class CachePool:
    """Memory for the caches of one or more sequences.

    Args:
        cache: what the graph says of its cache.
        rows: tokens that each place holds at first.

    `memory` is replaced, never changed, where caches move. Whoever runs the engine, or reads or
    writes rows, holds `lock` meanwhile.

    Raises:
        BadBundle: a type that ONNX Runtime's CPU provider does not have.
    """

    def __init__(self, cache: CacheContract, rows: int) -> None:
        if cache.dtype not in _DTYPES:
            raise BadBundle(
                f"the cache is of type {cache.dtype}, ONNX Runtime's CPU provider has "
                f"{', '.join(_DTYPES)}; export the bundle again"
            )
        self._cache = cache
        self.memory = CacheMemory([], rows, ())
        # Rows of each place that may hold something; None where nobody has the place.
        self._written: list[int | None] = []
        self.lock = threading.RLock()

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

    def view(self, place: int) -> CacheArrays:
        """Keys and values of a place [1, heads, rows, head_dim], by layer."""
        return self.memory.views(self.memory.indices[place], 1)

    def wrote(self, place: int, rows: int) -> None:
        """Take note that the first `rows` rows of a place may hold something."""
        self._written[place] = max(self._written[place] or 0, rows)

    def grow(self, rows: int) -> None:
        """Give every place this many rows; without memory for it, all stays as it is.

        Raises:
            DoesNotFit: there is no memory for it.
        """
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

    def allocate(self, places: int, rows: int) -> CacheArrays:
        """New memory for caches, zeroed.

        Raises:
            DoesNotFit: there is none.
        """
        layers = [(*self._cache.heads(layer), layer.rows) for layer in self._cache.layers]
        shapes = [(places, heads, own or rows, dim) for heads, dim, own in layers]
        dtype = _DTYPES[self._cache.dtype]
        try:
            # zeros, not empty: untouched pages of a large cache then cost no memory.
            return [(np.zeros(shape, dtype), np.zeros(shape, dtype)) for shape in shapes]
        except (MemoryError, ValueError):  # ValueError: beyond what an array can have
            raise DoesNotFit(
                f"there is no memory for a cache of {rows} tokens; load it with max_memory, or "
                "export with a shorter --context"
            ) from None

    def _moved(self, rows: int, indices: tuple[int, ...]) -> CacheMemory:
        """A copy of all that was written, in other memory and another order."""
        old, arrays = self.memory, self.allocate(len(indices), rows)
        for number, (pair, copies) in enumerate(zip(old.arrays, arrays, strict=False)):
            if self._cache.layers[number].rows is not None and indices == old.indices:
                arrays[number] = pair  # nothing about it changes
                continue
            for array, copy in zip(pair, copies, strict=True):
                for place, written in enumerate(self._written):
                    if not written:
                        continue
                    copy[indices[place], :, :written] = array[old.indices[place], :, :written]
        return CacheMemory(arrays, rows, indices)
