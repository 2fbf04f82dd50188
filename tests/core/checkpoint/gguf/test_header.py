"""Headers of GGUF files that lie are refused at once, by name, without allocating for the lie."""

import resource
import struct
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from edgelm.checkpoint.gguf.header import Header, read_header
from edgelm.errors import BadCheckpoint
from tests.checkpoints.raw_gguf import (
    ARRAY,
    BOOL,
    FLOAT32,
    INT32,
    STRING,
    UINT8,
    UINT32,
    UINT64,
    array,
    file,
    pair,
    tensor,
    text,
)

HUGE = 2**31


def parse(folder: Path, content: bytes) -> Header:
    path = folder / "a.gguf"
    path.write_bytes(content)
    return read_header(path, len(content))


def test_every_kind_of_value(tmp_path: Path) -> None:
    header = parse(
        tmp_path,
        file(
            [
                pair("number", INT32, struct.pack("<i", -7)),
                pair("flag", BOOL, b"\x01"),
                pair("fraction", FLOAT32, struct.pack("<f", 0.5)),
                pair("word", STRING, text("é")),
                pair("words", ARRAY, array(STRING, 2, text("a") + text(""))),
                pair("numbers", ARRAY, array(UINT8, 3, b"\x01\x02\x03")),
                pair("nested", ARRAY, array(ARRAY, 1, array(UINT32, 1, struct.pack("<I", 9)))),
            ],
            [tensor("a", [4, 2]), tensor("b", [3], offset=64)],
        ),
    )
    values = header.metadata
    assert (values["number"], values["flag"], values["fraction"]) == (-7, True, 0.5)
    assert (values["word"], values["words"]) == ("é", ["a", ""])
    assert values["numbers"].tolist() == [1, 2, 3]
    assert [item.tolist() for item in values["nested"]] == [[9]]
    assert header.tensors["a"].shape == (2, 4)
    assert header.tensors["b"].offset == 64
    assert header.data_offset % 32 == 0


LIES = {
    "tensors": (file(counts=(HUGE, 0)), "ends inside its header"),
    "keys": (file(counts=(0, HUGE)), "ends inside its header"),
    "more-keys-than-anybody-needs": (
        file(counts=(0, 200_000), data=bytes(3_000_000)),
        "announces 200000 metadata keys, at most 100000",
    ),
    "string": (file([pair("k", STRING, struct.pack("<Q", HUGE))]), "ends inside its header"),
    "string-of-2^64": (
        file([pair("k", STRING, struct.pack("<Q", 2**64 - 1))]),
        "ends inside its header",
    ),
    "key": (file([struct.pack("<Q", 2**63) + bytes(99)]), "ends inside its header"),
    "strings": (file([pair("k", ARRAY, array(STRING, HUGE, b""))]), "ends inside its header"),
    "numbers": (file([pair("k", ARRAY, array(UINT64, 2**62, b""))]), "ends inside its header"),
    "arrays": (file([pair("k", ARRAY, array(ARRAY, HUGE, b""))]), "ends inside its header"),
    "many-strings": (
        file([pair("k", ARRAY, array(STRING, 2**20 + 1, bytes(8 * 2**20 + 8)))]),
        "announces 1048577 items in k",
    ),
    "many-strings-in-arrays": (
        file([pair(f"k{n}", ARRAY, array(STRING, 2**18, bytes(2**21))) for n in range(5)]),
        "announces 262144 items in k4, at most 0 are read",
    ),
    "long-string": (
        file([pair("k", STRING, text(b"x" * (2**22 + 1)))]),
        "k has a string of 4194305 bytes, at most 4 MiB",
    ),
    "depth": (
        file([pair("k", ARRAY, array(ARRAY, 1, b"") * 100_000)]),
        "k nests arrays more than 4 deep",
    ),
    "unknown-item": (file([pair("k", ARRAY, array(99, 1, bytes(8)))]), "k is .* unknown type 99"),
    "key-twice": (
        file([pair("k", BOOL, b"\x01"), pair("k", BOOL, b"\x00")]),
        "metadata key 'k' appears twice",
    ),
    "key-not-utf8": (file([pair(b"k\xff", BOOL, b"\x01")]), "a metadata key is not UTF-8"),
    "tensor-twice": (file([], [tensor("a", [4]), tensor("a", [4])]), "tensor 'a' appears twice"),
    "no-dimensions": (file([], [tensor("a", [])]), "a has 0 dimensions, expected 1 to 4"),
    "too-many-dimensions": (file([], [tensor("a", [1] * 5)]), "a has 5 dimensions, expected 1 to"),
    "dimension-0": (file([], [tensor("a", [4, 0])]), r"a has shape \[0, 4\], which a file of"),
    "dimension-2^63": (file([], [tensor("a", [2**63])]), "a has shape .* cannot hold"),
    "product-overflows": (file([], [tensor("a", [2**32, 2**32])]), "a has shape .* cannot hold"),
    "empty-after-magic": (b"GGUF", "ends inside its header"),
}


@pytest.mark.parametrize(("content", "message"), LIES.values(), ids=LIES)
def test_a_header_that_lies(tmp_path: Path, content: bytes, message: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    with pytest.raises(BadCheckpoint, match=message) as caught:
        parse(tmp_path, content)
    assert "a.gguf" in str(caught.value)
    assert len(str(caught.value)) < 500
    assert time.process_time() - started < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (UINT32, struct.pack("<I", 0)),
        (UINT32, struct.pack("<I", 33)),
        (UINT64, struct.pack("<Q", 2**40)),
        (INT32, struct.pack("<i", -32)),
        (STRING, text("thirty-two")),
        (FLOAT32, struct.pack("<f", 32.0)),
        (ARRAY, array(UINT8, 1, b"\x20")),
    ],
    ids=["zero", "odd", "huge", "negative", "text", "fraction", "array"],
)
def test_alignment(tmp_path: Path, kind: int, value: bytes) -> None:
    content = file([pair("general.alignment", kind, value)])
    with pytest.raises(BadCheckpoint, match=r"general\.alignment is .* expected a power of two"):
        parse(tmp_path, content)


@pytest.mark.parametrize("swapped", [2, 3])
def test_big_endian_is_named(tmp_path: Path, swapped: int) -> None:
    content = b"GGUF" + struct.pack(">IQQ", swapped, 1, 1) + bytes(64)
    with pytest.raises(BadCheckpoint, match="big-endian GGUF files are not supported"):
        parse(tmp_path, content)


def test_cut_off_anywhere(tmp_path: Path) -> None:
    words = array(STRING, 2, text("a") + text("bcd"))
    numbers = array(UINT32, 4, bytes(16))
    whole = file(
        [pair("words", ARRAY, words), pair("numbers", ARRAY, numbers)],
        [tensor("a", [4]), tensor("b", [4], offset=32)],
        data=b"",
    )
    end = parse(tmp_path, whole).data_offset
    for length in range(1, end - 32):
        with pytest.raises(BadCheckpoint, match=r"ends inside its header|not a GGUF file"):
            parse(tmp_path, whole[:length])


def test_any_changed_byte_is_read_or_refused(tmp_path: Path) -> None:
    """Seeded: single bytes of a small header, each set to something else."""
    words = array(STRING, 2, text("a") + text("bcd"))
    whole = file(
        [pair("words", ARRAY, words), pair("general.alignment", UINT32, struct.pack("<I", 32))],
        [tensor("a", [4]), tensor("b", [4, 2], offset=32)],
    )
    random = np.random.default_rng(0)
    for _ in range(400):
        content = bytearray(whole)
        content[random.integers(0, 200)] = random.integers(0, 256)
        with suppress(BadCheckpoint):
            parse(tmp_path, bytes(content))
