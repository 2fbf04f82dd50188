"""Opening a folder: what it gives, and what is wrong with it said before any work."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edgelm.checkpoint.source import open_checkpoint, read_spec
from edgelm.errors import BadCheckpoint, BadInput, UnknownName
from edgelm.files.hashing import file_sha256
from tests.checkpoints.gguf_files import write_gguf
from tests.checkpoints.models import TINY, tiny_model
from tests.conftest import TinyFactory


@pytest.fixture
def folder(tiny: TinyFactory, tmp_path: Path) -> Path:
    """A copy of a tiny llama, to be damaged."""
    return shutil.copytree(tiny("llama").folder, tmp_path / "model")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    tiny_model("llama-untied").save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    return tmp_path / "shards"


@pytest.mark.parametrize("name", sorted(TINY))
def test_every_tensor_of_a_folder(tiny: TinyFactory, name: str) -> None:
    source = tiny(name)
    state = source.hf.state_dict()
    if source.hf.config.tie_word_embeddings:
        del state["lm_head.weight"]
    assert set(source.checkpoint.shapes) == set(state)
    for tensor, values in state.items():
        torch.testing.assert_close(source.checkpoint.tensor(tensor), values, rtol=0, atol=0)
        assert source.checkpoint.shapes[tensor] == tuple(values.shape)


def test_tensors_keep_their_stored_type(tmp_path: Path) -> None:
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    tensor = open_checkpoint(tmp_path).tensor("model.norm.weight")
    assert tensor.dtype == torch.bfloat16


def test_shards_are_one_model(shards: Path, tiny: TinyFactory) -> None:
    names = sorted(path.name for path in shards.glob("*.safetensors"))
    assert len(names) > 1
    checkpoint = open_checkpoint(shards)
    assert [path.name for path in checkpoint.weight_files] == names
    for name, values in tiny("llama-untied").hf.state_dict().items():
        torch.testing.assert_close(checkpoint.tensor(name), values, rtol=0, atol=0)


def test_hash_is_that_of_the_weights(folder: Path, shards: Path) -> None:
    assert open_checkpoint(folder).sha256() == file_sha256(folder / "model.safetensors")
    before = open_checkpoint(shards).sha256()
    last = max(shards.glob("*.safetensors"))
    data = bytearray(last.read_bytes())
    data[-1] ^= 1
    last.write_bytes(data)
    assert open_checkpoint(shards).sha256() != before


def test_a_stored_copy_of_a_tied_head_is_ignored(folder: Path, tiny: TinyFactory) -> None:
    state = {name: values.clone() for name, values in tiny("llama").hf.state_dict().items()}
    assert "lm_head.weight" in state
    save_file(state, folder / "model.safetensors")
    assert not open_checkpoint(folder).has("lm_head.weight")


def test_licence_of_the_model_card(tiny_chat: Path, folder: Path) -> None:
    assert open_checkpoint(tiny_chat).license == "apache-2.0"
    assert open_checkpoint(folder).license is None


def test_missing_shard(shards: Path) -> None:
    count = len(list(shards.glob("*.safetensors")))
    victim = max(shards.glob("*.safetensors"))
    victim.unlink()
    with pytest.raises(BadCheckpoint, match=f"lacks 1 of {count} shards, first '{victim.name}'"):
        open_checkpoint(shards)


@pytest.mark.parametrize("keep", [0, 4, 100], ids="{}-bytes".format)
def test_safetensors_cut_off_in_the_header(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BadCheckpoint, match=r"is truncated or not a safetensors file .*again"):
        open_checkpoint(folder)


def test_safetensors_cut_off_in_the_data(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    message = f"is truncated: {len(data) - 1} bytes of {len(data)}; download it again"
    with pytest.raises(BadCheckpoint, match=message):
        open_checkpoint(folder)


def test_safetensors_that_is_something_else(folder: Path) -> None:
    (folder / "model.safetensors").write_text("<html>Sign in to download this file.</html>\n")
    with pytest.raises(BadCheckpoint, match="truncated or not a safetensors file"):
        open_checkpoint(folder)


def test_missing_tensor(folder: Path, tiny: TinyFactory) -> None:
    state = {name: values.clone() for name, values in tiny("llama").hf.state_dict().items()}
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(BadCheckpoint, match=r"lacks 1 of \d+ tensors, first 'model\.layers\.1\."):
        open_checkpoint(folder)


def test_wrong_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 100}))
    with pytest.raises(
        BadCheckpoint,
        match=r"gate_proj\.weight has shape \[96, 64\], config\.json implies \[100, 64\]",
    ):
        open_checkpoint(folder)


def test_only_pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadCheckpoint, match=r"only pickled weights \(pytorch_model\.bin\)"):
        open_checkpoint(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadCheckpoint, match=r"holds no \*\.safetensors file"):
        open_checkpoint(folder)


def test_source_that_says_it_is_not_quantized(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": None}))
    assert open_checkpoint(folder).spec.family == "llama"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"has no config\.json; expected a Hugging Face model folder"),
        (lambda path: path.write_text('{"a": '), r"config\.json is not valid JSON"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), r"config\.json is not valid JSON"),
        (lambda path: path.write_text("[1]"), "contains list, expected an object"),
    ],
    ids=["missing", "cut-off", "binary", "a-list"],
)
def test_config(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder / "config.json")
    with pytest.raises(BadCheckpoint, match=message):
        open_checkpoint(folder)


def test_damaged_index_names_the_file(shards: Path) -> None:
    (shards / "model.safetensors.index.json").write_text('{"weight_map": ')
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors\.index\.json"):
        open_checkpoint(shards)


def test_unknown_family(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mixtral"}))
    with pytest.raises(UnknownName, match="unknown architecture 'mixtral'"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/no/such/model", "no such file or folder: /no/such/model; expected a Hugging Face"),
        ("./org/model", "no such file or folder"),
        ("model", "no such file or folder: model; "),
        ("model.gguf", r"no such file or folder: model\.gguf"),
    ],
    ids=["absolute", "relative", "one-word", "gguf"],
)
def test_nothing_there(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=message):
        open_checkpoint(source)


def test_a_file_that_is_no_gguf(folder: Path) -> None:
    with pytest.raises(BadInput, match=r"is a file; expected a Hugging Face folder, a \.gguf file"):
        open_checkpoint(folder / "model.safetensors")


def test_a_pipe_that_is_named_like_a_model(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(BadInput, match=r"m\.gguf is not a regular file; expected a Hugging Face"):
        open_checkpoint(tmp_path / "m.gguf")
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors is not a regular file, or a link"):
        open_checkpoint(folder)


def test_a_link_to_missing_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "gone")
    with pytest.raises(BadCheckpoint, match=r"safetensors is not .* a link to a missing one"):
        open_checkpoint(folder)


def test_a_gguf_file_with_a_name_in_capitals(tiny: TinyFactory, tmp_path: Path) -> None:
    path = write_gguf(tiny("llama").hf, tmp_path / "M.GGUF")
    assert open_checkpoint(path).spec == read_spec(path)
    assert read_spec(path).hidden_size == tiny("llama").checkpoint.spec.hidden_size


def test_a_license_as_long_as_a_book(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert open_checkpoint(folder).license == "mit"
    (folder / "README.md").write_text("---\nlicense: " + "[" * 100_000)
    assert open_checkpoint(folder).license is None


@pytest.mark.parametrize("source", ["x" * 5000, f"{'x' * 300}/y", "a\0b"])
def test_a_name_that_no_file_can_have(source: str) -> None:
    for read in (open_checkpoint, read_spec):
        with pytest.raises(BadInput) as caught:
            read(source)
        assert len(str(caught.value)) < 6000


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").symlink_to(tmp_path / "b.gguf")
    (tmp_path / "b.gguf").symlink_to(tmp_path / "a.gguf")
    with pytest.raises(BadInput):
        open_checkpoint(tmp_path / "a.gguf")


def test_a_configuration_that_is_a_folder(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    with pytest.raises(BadCheckpoint, match=r"config\.json is not a regular file"):
        open_checkpoint(folder)


def test_a_configuration_in_utf8_whatever_the_locale(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    text = json.dumps(config | {"_name_or_path": "モデル"}, ensure_ascii=False)
    (folder / "config.json").write_bytes(text.encode())
    code = (
        f"from edgelm.checkpoint.source import read_spec; print(read_spec({str(folder)!r}).family)"
    )
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "llama"
