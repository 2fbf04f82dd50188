"""The key-value caches of an engine and its siblings in the machine's memory: see place_pool.

Rows that were never written take no memory, since the system gives zeroed pages on the first write.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgelm.bundle import CacheContract
from edgelm.errors import BadBundle, DoesNotFit
from edgelm.runtime.engines.onnxruntime.place_pool import Move, PlacePool

# numpy has no bfloat16: its bits travel as uint16.
CACHE_DTYPES = {"fp32": np.float32, "fp16": np.float16, "bf16": np.uint16, "int8": np.int8}
CacheArrays = list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]


class CachePool(PlacePool):
    """Memory for the caches of one or more sequences.

    Raises:
        BadBundle: a type that ONNX Runtime's CPU provider does not have.
    """

    def __init__(self, cache: CacheContract, rows: int) -> None:
        if cache.dtype not in CACHE_DTYPES:
            raise BadBundle(
                f"the cache is of type {cache.dtype}, ONNX Runtime's CPU provider has "
                f"{', '.join(CACHE_DTYPES)}; export the bundle again"
            )
        super().__init__(cache, rows)

    def allocate(self, places: int, rows: int) -> CacheArrays:
        layers = [(*self._cache.heads(layer), layer.rows) for layer in self._cache.layers]
        shapes = [(places, heads, own or rows, dim) for heads, dim, own in layers]
        dtype = CACHE_DTYPES[self._cache.dtype]
        try:
            # zeros, not empty: untouched pages of a large cache then cost no memory.
            return [(np.zeros(shape, dtype), np.zeros(shape, dtype)) for shape in shapes]
        except (MemoryError, ValueError):  # ValueError: beyond what an array can have
            raise DoesNotFit(
                f"there is no memory for a cache of {rows} tokens; load it with max_memory, or "
                "export with a shorter --context"
            ) from None

    def copy(
        self, source: npt.NDArray[Any], target: npt.NDArray[Any], moves: Sequence[Move]
    ) -> None:
        for move in moves:
            target[move.target, :, : move.rows] = source[move.source, :, : move.rows]
