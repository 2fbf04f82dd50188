"""GGUF files written byte by byte, for what the gguf package would refuse to write."""

import struct
from collections.abc import Sequence

UINT8, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 0, 4, 5, 6, 7, 8, 9, 10


def text(value: str | bytes) -> bytes:
    """A string with its length."""
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    """A metadata key with its value."""
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, items: bytes) -> bytes:
    """An array's value; `count` need not be true."""
    return struct.pack("<IQ", kind, count) + items


def tensor(name: str, dims: Sequence[int], kind: int = 0, offset: int = 0) -> bytes:
    """A tensor's entry; dims in ggml's order."""
    packed = b"".join(struct.pack("<Q", dim) for dim in dims)
    return text(name) + struct.pack("<I", len(dims)) + packed + struct.pack("<IQ", kind, offset)


def file(
    pairs: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    *,
    counts: tuple[int, int] | None = None,
    data: bytes = bytes(256),
) -> bytes:
    """A whole file; `counts` (tensors, keys) need not be true."""
    counted = counts or (len(tensors), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", 3, *counted) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data
