"""The key-value caches of an engine and its siblings in a GPU's memory: see place_pool."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgelm.bundle import CacheContract
from edgelm.errors import BadBundle, DoesNotFit
from edgelm.runtime.engines.cuda import Stream, out_of_memory
from edgelm.runtime.engines.onnxruntime.cuda.provider import lacks_memory, onnxruntime
from edgelm.runtime.engines.onnxruntime.place_pool import Move, PlacePool

DEVICE = "cuda"
# Element types as onnx counts them; numpy has neither bfloat16 nor float8 (E4M3).
_TYPES = {"fp32": 1, "fp16": 10, "bf16": 16, "int8": 3, "fp8": 17}
_ITEM_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}


@dataclass(frozen=True, slots=True)
class GpuTensor:
    """Keys, or values, of one layer [places, heads, rows, head_dim] at an address.

    `owner` is what the memory belongs to; `dtype` counts types as onnx does.
    """

    owner: Any
    address: int
    shape: tuple[int, int, int, int]
    dtype: int
    item_bytes: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one head's row."""
        return self.shape[3] * self.item_bytes

    @property
    def head_bytes(self) -> int:
        """Bytes of a head's rows: from one head to the next."""
        return self.shape[2] * self.row_bytes

    @property
    def place_bytes(self) -> int:
        """Bytes of a place: from one to the next."""
        return self.shape[1] * self.head_bytes

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.shape[0] * self.place_bytes

    def __getitem__(self, places: slice) -> "GpuTensor":
        """Neighboring places."""
        first, end, _ = places.indices(self.shape[0])
        address = self.address + first * self.place_bytes
        return replace(self, address=address, shape=(end - first, *self.shape[1:]))


GpuTensors = list[tuple[GpuTensor, GpuTensor]]


def flat(cache: GpuTensors) -> list[GpuTensor]:
    """Keys and values, alternating."""
    return [tensor for pair in cache for tensor in pair]


class GpuPool(PlacePool):
    """Memory for the caches of one or more sequences.

    Args:
        cache: what the graph says of its cache.
        rows: tokens that each place holds at first.
        stream: what copies run on.

    Raises:
        BadBundle: a type that ONNX Runtime's CUDA provider does not have.
    """

    def __init__(self, cache: CacheContract, rows: int, stream: Stream) -> None:
        if cache.dtype not in _TYPES:
            raise BadBundle(
                f"the cache is of type {cache.dtype}, the CUDA provider has "
                f"{', '.join(_TYPES)}; export the bundle again"
            )
        super().__init__(cache, rows)
        self._stream = stream

    def allocate(self, places: int, rows: int) -> GpuTensors:
        cache = self.reserve(places, rows, "the key-value cache")
        for tensor in flat(cache):  # NaN in a masked row would spread
            self._stream.zero(tensor.address, tensor.nbytes)
        self._stream.synchronize()
        return cache

    def reserve(self, places: int, rows: int, what: str) -> GpuTensors:
        """New memory for keys and values, with anything in it.

        Raises:
            DoesNotFit: there is none.
        """
        kind, item = _TYPES[self._cache.dtype], _ITEM_BYTES[self._cache.dtype]
        heads = [self._cache.heads(layer) for layer in self._cache.layers for _ in ("key", "value")]
        shapes = [(places, count, rows, dim) for count, dim in heads]
        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        try:
            values = [make(shape, kind, DEVICE, 0) for shape in shapes]
        except Exception as error:
            if not lacks_memory(error):
                raise
            size = item * sum(map(math.prod, shapes))
            raise DoesNotFit(out_of_memory(what, size)) from None
        tensors = [
            GpuTensor(value, value.data_ptr(), shape, kind, item)
            for value, shape in zip(values, shapes, strict=True)
        ]
        return list(zip(tensors[::2], tensors[1::2], strict=True))

    def copy(self, source: GpuTensor, target: GpuTensor, moves: Sequence[Move]) -> None:
        for move in moves:
            self._stream.copy_rows(
                target.address + move.target * target.place_bytes,
                source.address + move.source * source.place_bytes,
                pitches=(target.head_bytes, source.head_bytes),
                width=min(move.rows, source.shape[2]) * source.row_bytes,
                rows=source.shape[1],
            )

    def settle(self) -> None:
        self._stream.synchronize()
