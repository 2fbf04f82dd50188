"""Safetensors files with their own hash in the header, to detect damage.

It is the SHA-256 of the file with the hash itself replaced by zeros.
"""

import hashlib
import re
import struct
from pathlib import Path

from edgelm.files.hashing import stream_sha256

UNSEALED = {"sha256": "0" * 64}  # metadata of a file that is sealed afterwards
_SEAL = re.compile(rb'"sha256":"([0-9a-f]{64})"')
_MAX_HEADER = 100_000_000  # bytes, the limit of safetensors itself
_CHUNK = 1 << 22


def sealed(content: bytes) -> bytes:
    """The bytes of a file that was written with `UNSEALED` metadata, with their hash."""
    found = _SEAL.search(content, 8, 8 + _header_length(content[:8]))
    assert found is not None
    start, end = found.span(1)
    digest = hashlib.sha256(content).hexdigest().encode()
    return b"".join((memoryview(content)[:start], digest, memoryview(content)[end:]))


def seal_file(path: Path) -> None:
    """Store the hash in a file that was written with `UNSEALED` metadata."""
    with path.open("r+b") as file:
        digest = stream_sha256(file)
        file.seek(0)
        header = file.read(_header_length(file.read(8)))
        found = _SEAL.search(header)
        assert found is not None
        file.seek(8 + found.start(1))
        file.write(digest.encode())


def is_sealed(path: Path) -> bool:
    """Whether a file exists, has a hash and matches it."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
            header = file.read(_header_length(start))
            found = _SEAL.findall(header)
            if len(found) != 1:
                return False
            digest = hashlib.sha256(start + header.replace(found[0], b"0" * 64))
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except (OSError, struct.error, ValueError):
        return False
    return bool(digest.hexdigest().encode() == found[0])


def _header_length(start: bytes) -> int:
    (length,) = struct.unpack("<Q", start)
    if length > _MAX_HEADER:
        raise ValueError("not a safetensors file")
    return int(length)
