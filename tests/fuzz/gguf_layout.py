"""A GGUF file as values that can be changed and written again, right or wrong."""

import struct
from dataclasses import dataclass, field
from typing import Any

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"}
SCALARS |= {10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
U32, U64 = 2**32 - 1, 2**64 - 1


@dataclass
class Array:
    """An array of metadata; `count` is what is written, whatever there is."""

    item: int
    values: list[Any]
    count: int | None = None


@dataclass
class Entry:
    """One pair of metadata."""

    key: bytes
    kind: int
    value: Any


@dataclass
class Tensor:
    """One tensor's description; dims as they are written, innermost first."""

    name: bytes
    dims: list[int]
    kind: int
    offset: int
    count: int | None = None


@dataclass
class Layout:
    """All of a file: the header, and the data from its first aligned byte on."""

    version: int
    entries: list[Entry] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    data: bytes = b""
    alignment: int = 32
    magic: bytes = b"GGUF"
    counts: tuple[int, int] | None = None
    """Tensors and pairs as they are written, whatever there is."""

    def encoded(self) -> bytes:
        """The file."""
        tensors, entries = self.counts or (len(self.tensors), len(self.entries))
        parts = [self.magic, struct.pack("<IQQ", self.version & U32, tensors & U64, entries & U64)]
        for entry in self.entries:
            parts += [_text(entry.key), struct.pack("<I", entry.kind & U32)]
            parts.append(_value(entry.kind, entry.value))
        for tensor in self.tensors:
            dims = [dim & U64 for dim in tensor.dims]
            count = len(dims) if tensor.count is None else tensor.count
            parts.append(_text(tensor.name))
            parts.append(struct.pack(f"<I{len(dims)}Q", count & U32, *dims))
            parts.append(struct.pack("<IQ", tensor.kind & U32, tensor.offset & U64))
        header = b"".join(parts)
        return header + bytes(-len(header) % self.alignment) + self.data


def parsed(data: bytes) -> Layout:
    """Read a file that is right."""
    reader = _Reader(data)
    reader.at = 4
    version, tensors, entries = reader.take("I"), reader.take("Q"), reader.take("Q")
    layout = Layout(version)
    for _ in range(entries):
        key, kind = reader.text(), reader.take("I")
        layout.entries.append(Entry(key, kind, reader.value(kind)))
    for _ in range(tensors):
        name = reader.text()
        dims = [reader.take("Q") for _ in range(reader.take("I"))]
        layout.tensors.append(Tensor(name, dims, reader.take("I"), reader.take("Q")))
    layout.data = data[-(-reader.at // layout.alignment) * layout.alignment :]
    return layout


def _text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _value(kind: int, value: Any) -> bytes:
    if isinstance(value, bytes):  # raw: a value of an unknown type
        return _text(value) if kind == STRING else value
    if isinstance(value, Array):
        count = len(value.values) if value.count is None else value.count
        items = b"".join(_value(value.item, item) for item in value.values)
        return struct.pack("<IQ", value.item & U32, count & U64) + items
    return _packed(SCALARS[kind], value)


def _packed(code: str, value: Any) -> bytes:
    """A number in its type, wrapped around where it does not fit."""
    if code in "fd":
        try:
            return struct.pack(f"<{code}", float(value))
        except OverflowError:
            return struct.pack(f"<{code}", float("inf"))
    if code == "?":
        return struct.pack("<B", int(value) & 255)
    bits = 8 * struct.calcsize(code)
    return (int(value) % (1 << bits)).to_bytes(bits // 8, "little")


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at: int = 0

    def take(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(code)
        return value

    def text(self) -> bytes:
        size: int = self.take("Q")
        self.at += size
        return self.data[self.at - size : self.at]

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            item, count = self.take("I"), self.take("Q")
            return Array(item, [self.value(item) for _ in range(count)])
        return self.take(SCALARS[kind])
