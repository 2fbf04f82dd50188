"""Mutations of bytes, blind to what they mean."""

import struct
from random import Random

from tests.fuzz.strange import flipped

_INTEGERS = (0, 1, 2, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)


def mutate_bytes(rng: Random, data: bytes, *, within: int | None = None) -> tuple[bytes, str]:
    """Change one thing, in the first `within` bytes where given; returns what."""
    end = min(within or len(data), len(data))
    at = rng.randrange(end) if end else 0
    size = min(1 << rng.randrange(8), len(data) - at)
    way = rng.choice(
        ("flip", "byte", "cut", "insert", "remove", "repeat", "zero", "number", "tail")
    )
    if way == "flip":
        return data[:at] + flipped(rng, data[at : at + 1]) + data[at + 1 :], f"flip at {at}"
    if way == "byte":
        return data[:at] + rng.randbytes(1) + data[at + 1 :], f"byte at {at}"
    if way == "cut":
        return data[:at], f"cut to {at}"
    if way == "insert":
        return data[:at] + rng.randbytes(size) + data[at:], f"insert {size} at {at}"
    if way == "remove":
        return data[:at] + data[at + size :], f"remove {size} at {at}"
    if way == "repeat":
        return data[: at + size] + data[at:], f"repeat {size} at {at}"
    if way == "zero":
        return data[:at] + bytes(size) + data[at + size :], f"zero {size} at {at}"
    if way == "number":
        value, width = rng.choice(_INTEGERS), rng.choice((4, 8))
        number = struct.pack("<Q", value)[:width]
        return data[:at] + number + data[at + width :], f"number {value} ({width} bytes) at {at}"
    tail = rng.randbytes(size)
    return data + tail, f"append {len(tail)}"
