"""Parse the header of a GGUF file (format: ggml docs/gguf.md, versions 2 and 3).

It takes milliseconds, where the `gguf` package's reader takes seconds on a large vocabulary. The
file is untrusted: every length and count is compared with the remaining bytes and with a generous
limit before anything is allocated.
"""

import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import shown
from edgelm.files.lfs_pointer import check_not_pointer
from edgelm.reasons import reason

_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9

_USUAL_BYTES = 24 * 2**20  # 262,144 tokens with their merges take 15 MB
_MAX_HEADER_BYTES = 64 * 2**20
_TOO_LONG = f"the header is longer than the limit of {_MAX_HEADER_BYTES // 2**20} MiB"
_MAX_STRING_BYTES = 4 * 2**20  # the longest chat templates have some 100 kB
_MAX_NAME_BYTES = 65_535
_MAX_ENTRIES = 100_000  # metadata keys, and tensors
_MAX_ITEMS = 2**20  # strings in all arrays; tokens and merges stay below 800,000
_MAX_DEPTH = 4  # arrays in arrays
_MAX_DIMS = 4
_MAX_ALIGNMENT = 2**20


class TensorInfo(NamedTuple):
    """A tensor's place in the file; `shape` is row-major, as in Hugging Face checkpoints."""

    shape: tuple[int, ...]
    ggml_type: int
    offset: int
    """Bytes from the beginning of the data."""


class Header(NamedTuple):
    """The contents of a GGUF file's header.

    Arrays of numbers in `metadata` are numpy arrays, other arrays are lists. Strings that are not
    UTF-8 keep their bytes as surrogates, so that only their users reject them.
    `entries` are the bytes of each metadata entry, from its key to the end of its value.
    """

    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    data_offset: int
    alignment: int
    entries: dict[str, slice] = {}  # noqa: RUF012 - never changed


def read_header(path: Path, size: int) -> Header:
    """Parse the header of a file.

    Args:
        path: the file.
        size: its bytes.

    Raises:
        BadCheckpoint: it is not a GGUF file, is truncated, or has impossible values.
    """
    if not size:
        raise BadCheckpoint(f"{path} is empty; download it again")
    try:
        with path.open("rb") as file:
            data = file.read(_USUAL_BYTES)
            check_not_pointer(path, data[:200])
            try:
                return _Parser(data, size).parse()
            except _Truncated:
                data += file.read(_MAX_HEADER_BYTES - len(data))
                return _Parser(data, size).parse()
    except _Truncated:
        if size > len(data) == _MAX_HEADER_BYTES:
            raise BadCheckpoint(f"{path}: {_TOO_LONG}") from None
        raise BadCheckpoint(f"{path} ends inside its header; download it again") from None
    except ValueError as error:
        raise BadCheckpoint(f"{path}: {reason(error)}") from None


class _Truncated(Exception):
    """The header announces more bytes than the file has."""


class _Parser:
    """Parses `data`, the first bytes of a file that has `size` bytes."""

    def __init__(self, data: bytes, size: int) -> None:
        self.data = data
        self.size = size
        self.at = 0
        self.items = 0

    def parse(self) -> Header:
        if self.data[:4] != b"GGUF":
            raise ValueError("not a GGUF file (its first four bytes are not 'GGUF')")
        self.at = 4
        self.check_version(self.integer("<I"))
        tensors, keys = self.integer("<Q"), self.integer("<Q")
        self.check_count(keys, 13, "metadata keys", _MAX_ENTRIES)
        self.check_count(tensors, 24, "tensors", _MAX_ENTRIES)
        metadata: dict[str, Any] = {}
        entries: dict[str, slice] = {}
        for _ in range(keys):
            begin = self.at
            key = self.name("a metadata key")
            if key in metadata:
                raise ValueError(f"the metadata key {shown(key)} appears twice; convert it again")
            metadata[key] = self.value(key, self.integer("<I"))
            entries[key] = slice(begin, self.at)
        infos: dict[str, TensorInfo] = {}
        for _ in range(tensors):
            name = self.name("a tensor's name")
            if name in infos:
                raise ValueError(f"the tensor {shown(name)} appears twice; convert it again")
            infos[name] = self.tensor(name)
        alignment = self.alignment(metadata.get("general.alignment", 32))
        data_offset = -(-self.at // alignment) * alignment
        return Header(metadata, infos, data_offset, alignment, entries)

    def check_version(self, version: int) -> None:
        if version in (2, 3):
            return
        if int.from_bytes(version.to_bytes(4, "little"), "big") in (1, 2, 3):
            raise ValueError(
                "big-endian GGUF files are not supported; convert the model again on a "
                "little-endian machine, or with gguf's gguf-convert-endian"
            )
        raise ValueError(
            f"GGUF version {version} is not supported, expected 2 or 3; convert the model again"
        )

    def alignment(self, value: Any) -> int:
        if isinstance(value, int) and value in (2**power for power in range(3, 21)):
            return value
        raise ValueError(
            f"general.alignment is {_short(value)}, expected a power of two from 8 to "
            f"{_MAX_ALIGNMENT}"
        )

    def tensor(self, name: str) -> TensorInfo:
        count = self.integer("<I")
        if not 1 <= count <= _MAX_DIMS:
            raise ValueError(f"{name} has {count} dimensions, expected 1 to {_MAX_DIMS}")
        dims = [self.integer("<Q") for _ in range(count)]
        elements = 1
        for dim in dims:
            elements *= dim
            # An element needs at least one bit.
            if dim < 1 or elements > 8 * self.size:
                raise ValueError(
                    f"{name} has shape {list(reversed(dims))}, which a file of {self.size} bytes "
                    "cannot hold; download it again"
                )
        return TensorInfo(tuple(reversed(dims)), self.integer("<I"), self.integer("<Q"))

    def integer(self, form: str) -> int:
        try:
            (value,) = struct.unpack_from(form, self.data, self.at)
        except struct.error:
            raise _Truncated from None
        self.at += struct.calcsize(form)
        return int(value)

    def take(self, length: int) -> int:
        """Skip a number of bytes; returns the position of the first one."""
        begin = self.at
        if length > self.size - begin:
            raise _Truncated
        if begin + length > _MAX_HEADER_BYTES:
            raise ValueError(_TOO_LONG)
        if begin + length > len(self.data):
            raise _Truncated
        self.at += length
        return begin

    def check_count(self, count: int, least_bytes: int, what: str, limit: int) -> None:
        if count * least_bytes > self.size - self.at:
            raise _Truncated
        if count > limit:
            raise ValueError(f"the file announces {count} {what}, at most {limit} are read")

    def name(self, what: str) -> str:
        length = self.integer("<Q")
        begin = self.take(length)
        if length > _MAX_NAME_BYTES:
            raise ValueError(f"{what} has {length} bytes, at most {_MAX_NAME_BYTES} are read")
        raw = self.data[begin : self.at]
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise ValueError(f"{what} is not UTF-8: {raw[:40]!r}; download it again") from None

    def string(self, key: str) -> str:
        length = self.integer("<Q")
        begin = self.take(length)
        if length > _MAX_STRING_BYTES:
            raise ValueError(f"{key} has a string of {length} bytes, at most 4 MiB are read")
        return self.data[begin : self.at].decode("utf-8", "surrogateescape")

    def value(self, key: str, kind: int) -> Any:
        if kind == _STRING:
            return self.string(key)
        if kind == _ARRAY:
            return self.array(key, 1)
        return self.numbers(key, kind, 1)[0].item()

    def array(self, key: str, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError(f"{key} nests arrays more than {_MAX_DEPTH} deep")
        item, count = self.integer("<I"), self.integer("<Q")
        if item not in (_STRING, _ARRAY):
            return self.numbers(key, item, count)
        self.check_count(count, 8, f"items in {key}", _MAX_ITEMS - self.items)
        self.items += count
        if item == _STRING:
            return self.strings(key, count)
        return [self.array(key, depth + 1) for _ in range(count)]

    def strings(self, key: str, count: int) -> list[str]:
        # A vocabulary and its merges are half a million strings: avoid a call for each.
        unpack, data, at = struct.Struct("<Q").unpack_from, self.data, self.at
        end = len(self.data)
        values = []
        for _ in range(count):
            if at + 8 > end:
                break
            begin = at + 8
            at = begin + unpack(data, at)[0]
            if at > end:
                break
            values.append(data[begin:at].decode("utf-8", "surrogateescape"))
        if len(values) < count or at > end:
            raise _Truncated
        self.take(at - self.at)
        return values

    def numbers(self, key: str, kind: int, count: int) -> Any:
        if kind not in _SCALARS:
            raise ValueError(f"{key} is metadata of unknown type {kind}; download it again")
        form = np.dtype(_SCALARS[kind])
        begin = self.take(count * form.itemsize)
        return np.frombuffer(self.data, form, count, begin).copy()  # without all the other bytes


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
