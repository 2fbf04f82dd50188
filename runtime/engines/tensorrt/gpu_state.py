"""What layers without attention remember, in GPU memory: see edgelm.runtime.engines.HostState."""

from typing import Any

import numpy as np

from edgelm.bundle import StateTensor
from edgelm.runtime.engines.cuda import Memory, Stream
from edgelm.runtime.engines.recurrent_state import STATE_DTYPES, Arrays

_ALIGNMENT = 256  # of addresses, required by TensorRT


class GpuState:
    """The state of one sequence, at addresses that stay; a graph reads `past`, writes `present`.

    `addresses` has the address of every past and present tensor, by its name in the graph.
    """

    def __init__(self, tensors: tuple[StateTensor, ...], stream: Stream) -> None:
        self._stream = stream
        self._empty = [np.empty((1, *one.shape), STATE_DTYPES[one.dtype]) for one in tensors]
        starts = np.cumsum([0, *(_aligned(array.nbytes) for array in self._empty)]).tolist()
        self._offsets: list[int] = starts[:-1]
        self._past, self._present = (
            Memory(starts[-1], "the state of layers without attention") for _ in range(2)
        )
        self.addresses: dict[str, int] = {}
        for one, offset in zip(tensors, self._offsets, strict=True):
            self.addresses[one.past] = self._past.address + offset
            self.addresses[one.present] = self._present.address + offset
        self.clear()

    @property
    def count(self) -> int:
        return len(self._empty)

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self._past.size + self._present.size

    def advance(self) -> None:
        """Queue what makes the state that a run wrote the next one's past."""
        self._stream.within_gpu(self._past.address, self._present.address, self._past.size)

    def read(self, length: int) -> Arrays:
        arrays: Arrays = [np.empty_like(array) for array in self._empty]
        for array, offset in zip(arrays, self._offsets, strict=True):
            source = self._past.address + offset
            self._stream.to_host(array.ctypes.data, source, array.nbytes)
        self._stream.synchronize()
        return arrays

    def write(self, length: int, arrays: Arrays) -> None:
        whole: list[Any] = [np.ascontiguousarray(array) for array in arrays]
        for array, offset in zip(whole, self._offsets, strict=True):
            target = self._past.address + offset
            self._stream.to_gpu(target, array.ctypes.data, array.nbytes)
        self._stream.synchronize()

    def clear(self) -> None:
        for memory in (self._past, self._present):
            self._stream.zero(memory.address, memory.size)

    def covers(self, tokens: int, length: int) -> bool:
        return tokens == length

    def together(self, length: int, most: int) -> int:
        return most

    def free(self) -> None:
        """Release the memory."""
        for memory in (self._past, self._present):
            memory.free()


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
