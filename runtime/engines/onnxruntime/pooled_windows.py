"""The rows of windowed layers in a cache pool, as a state that snapshots are taken of."""

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from edgelm.bundle import CacheLayer
from edgelm.runtime.engines.onnxruntime.cache_pool import CachePool
from edgelm.runtime.engines.recurrent_state import Arrays
from edgelm.runtime.engines.window_state import WindowLayout, check_held


class PooledWindows:
    """What the windowed layers of one place hold: keys and values, layer by layer.

    Args:
        pool: the caches.
        place: of the sequence.
        layers: all layers with a cache, as the manifest has them.
    """

    def __init__(self, pool: CachePool, place: int, layers: Sequence[CacheLayer]) -> None:
        self._pool, self._place = pool, place
        self._layers = [number for number, one in enumerate(layers) if one.rows is not None]
        self._layout = WindowLayout(
            [(one.rows, one.window) for one in layers if one.rows is not None and one.window]
        )

    @property
    def count(self) -> int:
        return 2 * len(self._layers)

    def read(self, length: int) -> Arrays:
        with self._pool.lock:
            pairs = zip(self._pairs(), self._layout.held(length), strict=True)
            return [array[:, :, :held].copy() for pair, held in pairs for array in pair]

    def write(self, length: int, arrays: Arrays) -> None:
        check_held(arrays, self._layout.held(length), length)
        with self._pool.lock:
            own = [array for pair in self._pairs() for array in pair]
            for array, given in zip(own, arrays, strict=True):
                array[:, :, : given.shape[2]] = given
            self._pool.wrote(self._place, length)

    def clear(self) -> None:
        pass  # of no tokens no rows are read

    def covers(self, tokens: int, length: int) -> bool:
        return self._layout.covers(tokens, length)

    def together(self, length: int, most: int) -> int:
        return self._layout.together(length, most)

    def _pairs(self) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
        cache = self._pool.view(self._place)
        return [cache[number] for number in self._layers]
