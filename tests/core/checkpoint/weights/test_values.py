"""Weights that are not numbers are refused where they are first read, by name."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgelm.checkpoint.source import Checkpoint, open_checkpoint
from edgelm.checkpoint.weights.safetensors_header import read_header
from edgelm.checkpoint.weights.values import check_finite, read_tensor
from edgelm.errors import BadCheckpoint
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
