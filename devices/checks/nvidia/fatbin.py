"""Which GPUs a library has kernels for, read from the library itself.

nvcc packs machine code (`sm_86`) and portable assembly (`compute_86`) into *fat binaries*: a
header of 16 bytes with the size of what follows, then entries that each begin with their kind,
their sizes and their compute capability. Reading the headers and skipping the code takes a few
milliseconds, also for hundreds of megabytes. Of onnxruntime-gpu 1.31.1 it finds the architectures
of its build script; the suffix of one such as 90a is not in the header.
"""

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

_MAGIC = b"\x50\xed\x55\xba"
_HEADER = struct.Struct("<IHHQ")  # magic, version, bytes of this header, bytes that follow
_ENTRY = struct.Struct("<HHIQIIHHI")  # kind, -, header bytes, data bytes, -, -, -, -, capability
_KINDS = {1: "compute", 2: "sm"}


def kernel_targets(library: Path) -> frozenset[str]:
    """The targets, such as sm_86 and compute_86, of the kernels in a library."""
    with (
        library.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        return frozenset(_targets(data))


def _targets(data: mmap.mmap) -> Iterator[str]:
    at = data.find(_MAGIC)
    while at >= 0:
        end = at + len(_MAGIC)
        if at + _HEADER.size <= len(data):
            _, version, header, size = _HEADER.unpack_from(data, at)
            # The magic number also occurs by chance: what follows must look like a header.
            if version == 1 and header == _HEADER.size and at + header + size <= len(data):
                end = at + header + size
                yield from _entries(data, at + header, end)
        at = data.find(_MAGIC, end)


def _entries(data: mmap.mmap, at: int, end: int) -> Iterator[str]:
    while at + _ENTRY.size <= end:
        kind, _, header, size, *_, capability = _ENTRY.unpack_from(data, at)
        if header < _ENTRY.size:
            return
        if kind in _KINDS:
            yield f"{_KINDS[kind]}_{capability}"
        at += header + size
