"""Headers of safetensors files: what is read of good ones, and what is wrong with the others."""

import copy
import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from edgelm.checkpoint.weights.safetensors_header import read_header
from edgelm.errors import BadCheckpoint
from tests.checkpoints.weight_folders import split_header, write_header

Entry = dict[str, Any]
NAMES = ("a", "b", "c")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tensors = {
        "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "b": torch.ones(4, dtype=torch.bfloat16),
        "c": torch.zeros(2, 2, dtype=torch.int8),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "model.safetensors"


def test_tensors(path: Path) -> None:
    tensors = read_header(path)
    assert {name: (one.dtype, one.shape) for name, one in tensors.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("BF16", (4,)),
        "c": ("I8", (2, 2)),
    }
    a = tensors["a"]
    assert path.read_bytes()[a.start : a.end] == struct.pack("<6f", *range(6))


def test_no_tensors(path: Path) -> None:
    write_header(path, {}, b"")
    assert read_header(path) == {}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F4X"}, "the dtype of 'a' is 'F4X', expected one of"),
        ({"dtype": None}, "the dtype of 'a' is None"),
        ({"dtype": ["F32"]}, "the dtype of 'a' is"),
        ({"dtype": "F64"}, r"data_offsets of 'a' is \[\d+, \d+\], expected 48 bytes of F64"),
        ({"shape": [2, 4]}, "expected 32 bytes of F32 for the shape"),
        ({"shape": [-2, -3]}, "the shape of 'a' is"),
        ({"shape": [True, 6]}, "the shape of 'a' is"),
        ({"shape": [2.0, 3]}, "the shape of 'a' is"),
        ({"shape": "23"}, "the shape of 'a' is '23'"),
        ({"shape": None}, "the shape of 'a' is None"),
        ({"shape": [2**63]}, "the shape of 'a' is"),
        ({"shape": [2**62] * 16}, "data_offsets of 'a' is"),
        ({"shape": [1] * 100_000}, "the shape of 'a' is .*at most 16 sizes"),
        ({"data_offsets": None}, "data_offsets of 'a' is None"),
        ({"data_offsets": [24, 0]}, "data_offsets of 'a' is"),
        ({"data_offsets": [-24, 0]}, "data_offsets of 'a' is"),
        ({"data_offsets": [0]}, "data_offsets of 'a' is"),
        ({"data_offsets": [0, 24, 48]}, "data_offsets of 'a' is"),
        ({"data_offsets": [2**70, 2**70 + 24]}, "data_offsets of 'a' is"),
        ({"data_offsets": [2**60, 2**60 + 24]}, "begins at byte"),
        ({"data_offsets": ["0", "24"]}, "data_offsets of 'a' is"),
    ],
)
def test_an_entry_that_is_wrong(path: Path, entry: Entry, message: str) -> None:
    header, data = split_header(path)
    header["a"] |= entry
    write_header(path, header, data)
    with pytest.raises(BadCheckpoint, match=message) as caught:
        read_header(path)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("entry", [None, [], "x", 5, {}])
def test_an_entry_of_another_kind(path: Path, entry: Any) -> None:
    header, data = split_header(path)
    write_header(path, header | {"a": entry}, data)
    with pytest.raises(BadCheckpoint, match=r"is damaged: the (entry|dtype) of 'a' is"):
        read_header(path)


def test_a_field_that_is_missing(path: Path) -> None:
    for field in ("dtype", "shape", "data_offsets"):
        header, data = split_header(path)
        changed = copy.deepcopy(header)
        del changed["a"][field]
        write_header(path, changed, data)
        with pytest.raises(BadCheckpoint, match=f"the {field} of 'a' is None"):
            read_header(path)
        write_header(path, header, data)


def test_tensors_that_overlap(path: Path) -> None:
    header, data = split_header(path)
    header["d"] = dict(header["a"])
    write_header(path, header, data)
    with pytest.raises(BadCheckpoint, match="overlap or leave a gap"):
        read_header(path)


def test_a_gap_between_tensors(path: Path) -> None:
    header, data = split_header(path)
    del header["b"]
    write_header(path, header, data)
    with pytest.raises(BadCheckpoint, match="overlap or leave a gap"):
        read_header(path)


def test_bytes_after_the_last_tensor(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(BadCheckpoint, match="1 bytes follow the last tensor"):
        read_header(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[1, 2]", "contains list, expected an object"),
        (b"\xff\xfe", "not encoded in UTF-8"),
        (b'{"a": 1, "a": 2}', "the key 'a' appears twice"),
        (b"[" * 200_000, "nested too deeply"),
        (b"", "not valid JSON"),
    ],
    ids=["list", "utf-16", "twice", "deep", "empty"],
)
def test_a_header_that_is_no_object(path: Path, header: bytes, message: str) -> None:
    write_header(path, header, b"")
    with pytest.raises(
        BadCheckpoint, match=rf"not a safetensors file \(its header .*{message}"
    ) as e:
        read_header(path)
    assert str(path) in str(e.value)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9, 10_000])
def test_a_header_longer_than_the_file(path: Path, length: int) -> None:
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    with pytest.raises(BadCheckpoint, match=f"header of {length:,} bytes is longer than the file"):
        read_header(path)


def test_a_header_that_fills_a_huge_file_is_not_read(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 10**10))
    with path.open("r+b") as file:
        file.truncate(10**10 + 8)  # sparse
    with pytest.raises(BadCheckpoint, match="a header of 10,000,000,000 bytes, expected at most"):
        read_header(path)


def _mutated(rng: random.Random, header: Entry) -> Entry:
    changed = copy.deepcopy(header)
    values: tuple[Any, ...] = (
        None,
        -1,
        0,
        4,
        2**31,
        2**63,
        True,
        1.5,
        "F32",
        "x",
        [],
        [0],
        [0, 24],
        {},
        header,
    )
    name = rng.choice(NAMES)
    way = rng.choice(("field", "field", "inner", "drop", "swap", "add"))
    if way == "field":
        changed[name][rng.choice(("dtype", "shape", "data_offsets", "x"))] = rng.choice(values)
    elif way == "inner":
        changed[name][rng.choice(("shape", "data_offsets"))][0] = rng.choice(values)
    elif way == "drop":
        del changed[name]
    elif way == "swap":
        changed[name] = rng.choice((changed["a"], rng.choice(values)))
    else:
        changed["d"] = rng.choice(values)
    return changed


def test_headers_changed_at_random_are_read_as_safetensors_reads_them(path: Path) -> None:
    rng = random.Random(1)
    header, data = split_header(path)
    for _ in range(400):
        write_header(path, _mutated(rng, header), data)
        _compare_with_safetensors(path)
    good = path.read_bytes()
    for _ in range(400):
        changed = bytearray(good)
        changed[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        _compare_with_safetensors(path)


def _compare_with_safetensors(path: Path) -> None:
    try:
        ours = read_header(path)
    except BadCheckpoint:
        return
    try:
        with safe_open(path, framework="pt") as opened:
            theirs = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            shapes = {name: tuple(one.get_shape()) for name, one in theirs.items()}
    except SafetensorError as error:
        raise AssertionError(json.dumps(split_header(path)[0])) from error
    assert {name: one.shape for name, one in ours.items()} == shapes


@pytest.mark.parametrize("metadata", [{"format": 5}, ["pt"], "pt", None, {"format": ["pt"]}])
def test_metadata_that_safetensors_refuses(path: Path, metadata: Any) -> None:
    header, data = split_header(path)
    write_header(path, header | {"__metadata__": metadata}, data)
    with pytest.raises(BadCheckpoint, match=r"__metadata__ is .*, expected an object of texts"):
        read_header(path)
