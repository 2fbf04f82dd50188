"""Weights that are not numbers are refused where they are first read, by name."""

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgelm.checkpoint.source import Checkpoint, open_checkpoint
from edgelm.checkpoint.weights import values
from edgelm.checkpoint.weights.safetensors_header import read_header
from edgelm.checkpoint.weights.values import check_finite, read_rows, read_tensor
from edgelm.errors import BadCheckpoint
from edgelm.files.file_range import read_ranges
from tests.checkpoints.gguf_files import write_gguf
from tests.checkpoints.weight_folders import store, store_shards, tensors_of
from tests.conftest import TinyFactory

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tiny: TinyFactory, tmp_path: Path) -> Path:
    return shutil.copytree(tiny("llama").folder, tmp_path / "model")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_one_value_that_is_no_number(folder: Path, value: float, dtype: torch.dtype) -> None:
    tensors = {name: values.to(dtype) for name, values in tensors_of(folder).items()}
    tensors[NAME][-1, 5] = value
    store(folder, tensors)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.tensor("model.norm.weight").dtype == dtype
    for _ in range(2):
        message = rf"{NAME} has 1 values of 6,144 that are NaN, infinite"
        with pytest.raises(BadCheckpoint, match=message):
            checkpoint.tensor(NAME)


def test_the_file_is_named(folder: Path) -> None:
    tensors = tensors_of(folder)
    tensors[NAME][0] = torch.nan
    store_shards(folder, tensors)
    with pytest.raises(BadCheckpoint, match=r"model-00001-of-00001\.safetensors: .*64 values"):
        open_checkpoint(folder).tensor(NAME)


def test_doubles_that_fp32_cannot_hold(folder: Path) -> None:
    tensors = tensors_of(folder)
    tensors[NAME] = tensors[NAME].double()
    tensors[NAME][0, 0] = 1e39
    store(folder, tensors)
    with pytest.raises(BadCheckpoint, match="too large for fp32"):
        open_checkpoint(folder).tensor(NAME)


def test_the_largest_numbers_are_numbers() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        limits = torch.finfo(dtype)
        check_finite(torch.tensor([limits.min, limits.max, 0.0], dtype=dtype), "x")
    check_finite(torch.zeros(0), "x")


def test_a_gguf_file(tiny: TinyFactory, tmp_path: Path) -> None:
    model = tiny("llama").hf
    path = write_gguf(model, tmp_path / "model.gguf")
    checkpoint = open_checkpoint(path)
    checkpoint.tensor(NAME)
    bad = checkpoint_reading(checkpoint, torch.full((2, 2), torch.inf))
    with pytest.raises(BadCheckpoint, match=r"model\.gguf: .*4 values of 4"):
        bad.tensor(NAME)


def checkpoint_reading(checkpoint: Checkpoint, tensor: torch.Tensor) -> Checkpoint:
    return replace(checkpoint, read=lambda _: tensor, _finite=set())


@pytest.mark.parametrize("change", ["removed", "replaced", "written", "cut"])
def test_a_file_that_changed_after_it_was_opened(folder: Path, change: str) -> None:
    checkpoint = open_checkpoint(folder)
    checkpoint.tensor("model.norm.weight")
    path, data = folder / "model.safetensors", (folder / "model.safetensors").read_bytes()
    path.unlink()
    if change == "replaced":
        path.write_bytes(data)
    elif change == "written":
        path.write_bytes(data[:-1] + b"x")
    elif change == "cut":
        path.write_bytes(data[:-1])
    for read in (lambda: checkpoint.tensor("model.norm.weight"), checkpoint.sha256):
        with pytest.raises(BadCheckpoint, match="changed or replaced after it was opened"):
            read()


def test_a_file_that_is_removed_while_it_is_read(folder: Path) -> None:
    stored = read_header(folder / "model.safetensors")[NAME]
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadCheckpoint, match="was the file changed after it was opened"):
        read_tensor(stored)


TYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32),
    *(torch.int64, torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.float8_e5m2, torch.float8_e4m3fn, torch.float8_e8m0fnu, torch.float8_e4m3fnuz),
    *(torch.float8_e5m2fnuz, torch.complex64),
]


def test_every_type_is_read_as_safetensors_does(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for dtype in TYPES:
        count = 15 * dtype.itemsize
        data = torch.randint(0, 2, (count,), dtype=torch.uint8, generator=generator)
        tensors[str(dtype)] = data.view(dtype).view(3, 5)
    tensors |= {"scalar": torch.tensor(1.5), "empty": torch.empty(0, 4), "none": torch.empty(3, 0)}
    save_file(tensors, tmp_path / "a.safetensors")
    stored = read_header(tmp_path / "a.safetensors")
    for name, expected in load_file(tmp_path / "a.safetensors").items():
        found = read_tensor(stored[name])
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        flat = (one.reshape(-1).view(torch.uint8) for one in (found, expected))
        assert torch.equal(*flat) or not expected.numel()


def test_a_type_that_torch_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    header = b'{"a":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"abc")
    with pytest.raises(BadCheckpoint, match=r"'a' is stored as F6_E2M3, which PyTorch .* BF16"):
        read_tensor(read_header(path)["a"])


@pytest.mark.parametrize(
    "rows", [[], [3], [0, 1, 2], [5, 1, 2, 2, 9], list(range(96)), [95, 0]], ids=str
)
def test_only_the_rows_that_are_wanted_are_read(
    folder: Path, rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    def counted(path: Path, ranges: Iterable[tuple[int, int]], out: memoryview) -> None:
        wanted = list(ranges)
        counts.extend(count for _, count in wanted)
        read_ranges(path, wanted, out)

    monkeypatch.setattr(values, "read_ranges", counted)
    stored = read_header(folder / "model.safetensors")[NAME]
    found = read_rows(stored, torch.tensor(rows, dtype=torch.int64))
    assert sum(counts) == 4 * found.numel()
    assert torch.equal(found, tensors_of(folder)[NAME][rows])


def test_rows_of_a_tensor_that_is_checked_whole(folder: Path) -> None:
    tensors = tensors_of(folder)
    tensors[NAME][-1, 0] = torch.nan
    store(folder, tensors)
    checkpoint = open_checkpoint(folder)
    with pytest.raises(BadCheckpoint, match="1 values of"):  # not in the row that is wanted
        checkpoint.rows(NAME, torch.tensor([0]))
    good = "model.embed_tokens.weight"
    wanted = torch.tensor([7, 2])
    first = checkpoint.rows(good, wanted)
    assert torch.equal(first, checkpoint.rows(good, wanted))
    assert torch.equal(first, tensors[good][wanted])
