"""A model's file that is truncated or replaced while it is read is an error, not a crash."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edgelm.checkpoint.source import open_checkpoint
from edgelm.errors import BadCheckpoint
from tests.checkpoints.gguf_files import write_gguf
from tests.checkpoints.quantized_folders import (
    AWQ,
    awq_parts,
    random_grid,
    replace_matrices,
)
from tests.checkpoints.weight_folders import store_shards, tensors_of
from tests.conftest import TinyFactory
from tests.forks import run_forked

NAME = "model.layers.1.mlp.up_proj.weight"


def single(tiny: TinyFactory, folder: Path) -> Path:
    return shutil.copytree(tiny("llama").folder, folder)


def shards(tiny: TinyFactory, folder: Path) -> Path:
    tensors = tensors_of(single(tiny, folder))
    first = dict(list(tensors.items())[:9])
    store_shards(folder, first, {name: tensors[name] for name in tensors.keys() - first})
    return folder


def awq(tiny: TinyFactory, folder: Path) -> Path:
    single(tiny, folder)
    replace_matrices(folder, lambda _, weight: awq_parts(random_grid(weight)), AWQ)
    return folder


def ggml(tiny: TinyFactory, folder: Path) -> Path:
    folder.mkdir()
    return write_gguf(tiny("llama").hf, folder / "model.gguf", "Q8_0")


@pytest.mark.parametrize("make", [single, shards, awq, ggml])
def test_truncated_while_it_is_read(
    tiny: TinyFactory, tmp_path: Path, make: Callable[[TinyFactory, Path], Path]
) -> None:
    source = make(tiny, tmp_path / "model")
    assert run_forked("tests.core.checkpoint.truncate_while_reading", str(source)) == 0


@pytest.mark.parametrize("make", [single, ggml])
@pytest.mark.parametrize("change", ["truncated", "overwritten"])
def test_changed_during_one_read(
    tiny: TinyFactory,
    tmp_path: Path,
    make: Callable[[TinyFactory, Path], Path],
    change: str,
) -> None:
    checkpoint = open_checkpoint(make(tiny, tmp_path / "model"))
    [path] = checkpoint.weight_files
    inner = checkpoint.read

    def read(name: str) -> torch.Tensor:
        tensor = inner(name)
        size = path.stat().st_size
        if change == "truncated":
            os.truncate(path, size // 2)
        else:
            path.write_bytes(bytes(size))
        return tensor

    object.__setattr__(checkpoint, "read", read)
    with pytest.raises(BadCheckpoint, match="changed or replaced after it was opened"):
        checkpoint.tensor(NAME)
