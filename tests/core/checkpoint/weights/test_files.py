"""Which files are the model: transformers' choice, and what is wrong with an index."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from edgelm.checkpoint.source import open_checkpoint, read_spec
from edgelm.errors import BadCheckpoint
from tests.checkpoints.models import tiny_model
from tests.checkpoints.weight_folders import INDEX, edit_config, store, store_shards, tensors_of
from tests.conftest import TinyFactory


@pytest.fixture
def folder(tiny: TinyFactory, tmp_path: Path) -> Path:
    return shutil.copytree(tiny("llama-untied").folder, tmp_path / "model")


@pytest.fixture
def shards(folder: Path) -> Path:
    tensors = tensors_of(folder)
    names = sorted(tensors)
    halves = [{name: tensors[name] for name in names[at::2]} for at in (0, 1)]
    store_shards(folder, *halves)
    return folder


def zeros(folder: Path, name: str) -> None:
    store(folder, {key: torch.zeros_like(value) for key, value in TENSORS.items()}, name)


TENSORS = dict(tiny_model("llama-untied").state_dict())


def assert_reads(folder: Path, *files: str) -> None:
    checkpoint = open_checkpoint(folder)
    assert [path.name for path in checkpoint.weight_files] == list(files)
    for name, values in TENSORS.items():
        torch.testing.assert_close(checkpoint.tensor(name), values, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["model_old", "z", "consolidated", "a", "optimizer"])
def test_a_file_beside_the_model_is_not_read(folder: Path, name: str) -> None:
    zeros(folder, name)
    assert_reads(folder, "model.safetensors")


def test_a_file_beside_the_shards_is_not_read(shards: Path) -> None:
    zeros(shards, "consolidated")
    zeros(shards, "model-00003-of-00003")
    assert_reads(shards, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.mark.parametrize("left", ["index", "index-and-shards"])
def test_one_file_goes_before_an_index_left_behind(folder: Path, left: str) -> None:
    old = {name: torch.zeros_like(values) for name, values in TENSORS.items()}
    store_shards(folder, old)
    if left == "index":
        (folder / "model-00001-of-00001.safetensors").unlink()
    store(folder, TENSORS)
    assert_reads(folder, "model.safetensors")


def test_one_file_alone_under_another_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(BadCheckpoint, match=r"only weights\.safetensors, which transformers does"):
        open_checkpoint(folder)


@pytest.mark.parametrize("suffix", [".gguf", ".GGUF"])
def test_only_a_gguf_file(folder: Path, suffix: str) -> None:
    (folder / "model.safetensors").rename(folder / f"model-q4{suffix}")
    with pytest.raises(BadCheckpoint, match=rf"but model-q4\{suffix}; pass that file itself"):
        open_checkpoint(folder)


def test_the_file_that_the_configuration_names(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "mine.safetensors")
    zeros(folder, "model")
    edit_config(folder, transformers_weights="mine.safetensors")
    assert_reads(folder, "mine.safetensors")


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/x.safetensors", "x.bin", 5, "no.safetensors"]
)
def test_a_configuration_that_names_no_weights(folder: Path, name: Any) -> None:
    edit_config(folder, transformers_weights=name)
    with pytest.raises(BadCheckpoint, match=r"transformers_weights|lacks no"):
        open_checkpoint(folder)


def test_shards_of_training_processes(folder: Path) -> None:
    shutil.copy(
        folder / "model.safetensors", folder / "shard-00001-model-00001-of-00001.safetensors"
    )
    with pytest.raises(BadCheckpoint, match="shards of several training processes"):
        open_checkpoint(folder)


def test_a_name_in_two_shards(shards: Path) -> None:
    tensors = {name: values for name, values in TENSORS.items() if "norm" in name}
    path = shards / "model-00002-of-00002.safetensors"
    store(shards, tensors_in(path) | tensors, path.stem)
    with pytest.raises(BadCheckpoint, match=r"both contain 'model\..*keep only the one"):
        open_checkpoint(shards)


def tensors_in(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


@pytest.mark.parametrize(
    "name",
    [
        *("../outside.safetensors", "/etc/x.safetensors", "a/../../outside.safetensors"),
        *("..\\outside.safetensors", "C:\\outside.safetensors", "a\0.safetensors"),
    ],
)
def test_a_shard_outside_the_folder(shards: Path, name: str) -> None:
    store(shards.parent, TENSORS, "outside")
    _point(shards, name)
    with pytest.raises(BadCheckpoint, match="which is outside of the folder"):
        open_checkpoint(shards)


@pytest.mark.parametrize("name", ["missing.safetensors", "x" * 5000 + ".safetensors"])
def test_a_shard_that_is_not_there(shards: Path, name: str) -> None:
    _point(shards, name)
    with pytest.raises(BadCheckpoint, match="lacks 1 of 3 shards, first"):
        open_checkpoint(shards)


def test_a_shard_that_is_no_file(shards: Path) -> None:
    (shards / "folder.safetensors").mkdir()
    os.mkfifo(shards / "pipe.safetensors")
    for name in ("folder.safetensors", "pipe.safetensors"):
        _point(shards, name)
        with pytest.raises(BadCheckpoint, match="lacks 1 of 3 shards"):
            open_checkpoint(shards)


def test_a_shard_that_is_a_link_is_read(shards: Path) -> None:
    # As all files of the hub's cache are.
    path = shards / "model-00001-of-00002.safetensors"
    blob = path.rename(shards.parent / "blob")
    path.symlink_to(blob)
    assert open_checkpoint(shards).tensor("lm_head.weight").numel()


def _point(folder: Path, name: str) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = name
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    "index",
    [
        *("[]", "5", "null", "{}", '{"weight_map": 5}', '{"weight_map": []}', '{"weight_map": {}}'),
        *('{"weight_map": {"a": 5}}', '{"weight_map": {"a": null}}', '{"weight_map": {"a": ""}}'),
        *('{"weight_map": {"a": "x.bin"}}', '{"weight_map": {"a": ["x.safetensors"]}}', ""),
        *("[" * 100_000, '{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}'),
    ],
)
def test_an_index_of_another_shape(shards: Path, index: str) -> None:
    (shards / INDEX).write_text(index)
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors\.index\.json"):
        open_checkpoint(shards)


def test_an_index_that_places_a_tensor_in_another_shard(shards: Path) -> None:
    # transformers takes every tensor of every shard, whatever the index says of each.
    _point(shards, "model-00001-of-00002.safetensors")
    assert_reads(shards, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def test_a_configuration_alone_can_be_planned(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert read_spec(folder).family == "llama"
