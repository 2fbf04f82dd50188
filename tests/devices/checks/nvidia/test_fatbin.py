"""Kernels' targets, read from bytes laid out as nvcc lays them out."""

import struct
from pathlib import Path

import pytest

from edgelm.devices.checks.nvidia.fatbin import kernel_targets

MAGIC = 0xBA55ED50
PTX, SASS = 1, 2


def entry(kind: int, capability: int, code: bytes = b"\xaa" * 40) -> bytes:
    header = struct.pack("<HHIQIIHHI", kind, 257, 64, len(code), 0, 0, 4, 1, capability)
    return header.ljust(64, b"\0") + code


def fat_binary(*entries: bytes) -> bytes:
    body = b"".join(entries)
    return struct.pack("<IHHQ", MAGIC, 1, 16, len(body)) + body


def test_targets_of_several_binaries(tmp_path: Path) -> None:
    library = tmp_path / "library.so"
    library.write_bytes(
        b"\x7fELF code"
        + fat_binary(entry(SASS, 75), entry(SASS, 86))
        + b"more code"
        + fat_binary(entry(SASS, 120), entry(PTX, 90))
        + b"end"
    )
    assert kernel_targets(library) == {"sm_75", "sm_86", "sm_120", "compute_90"}


def test_magic_by_chance_and_unknown_kinds(tmp_path: Path) -> None:
    magic = struct.pack("<I", MAGIC)
    inside = entry(SASS, 87, code=magic + b"\0" * 60)  # found again, if code were searched
    library = tmp_path / "library.so"
    library.write_bytes(magic + b"text" * 8 + fat_binary(entry(64, 33), inside) + magic)
    assert kernel_targets(library) == {"sm_87"}


def test_truncated(tmp_path: Path) -> None:
    library = tmp_path / "library.so"
    library.write_bytes(fat_binary(entry(SASS, 87))[:-1])
    assert kernel_targets(library) == frozenset()


def test_no_header_of_an_entry(tmp_path: Path) -> None:
    library = tmp_path / "library.so"
    library.write_bytes(fat_binary(b"\0" * 200, entry(SASS, 87)))
    assert kernel_targets(library) == frozenset()


def test_no_library(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        kernel_targets(tmp_path / "library.so")
