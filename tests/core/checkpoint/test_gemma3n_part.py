"""The text decoder inside Gemma 3n's checkpoints, whose towers need a package for images."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgelm.checkpoint.source import open_checkpoint, read_spec
from edgelm.errors import BadCheckpoint
from tests.checkpoints.weight_folders import edit_config
from tests.conftest import Tiny, TinyFactory

TOWERS = {
    "model.vision_tower.timm_model.conv_stem.conv.weight": (2, 2),
    "model.audio_tower.conformer.0.norm.weight": (2,),
    "model.embed_vision.embedding.weight": (4, 2),
    "model.embed_audio.embedding.weight": (4, 2),
}


def multimodal(source: Tiny, folder: Path) -> Path:
    """A model of text as the decoder of one with towers, as published checkpoints have it."""
    folder.mkdir()
    stored = load_file(source.folder / "model.safetensors")
    tensors = {name.replace("model.", "model.language_model.", 1): t for name, t in stored.items()}
    # Published checkpoints have keys and values of layers that share others.
    extra = {
        name.replace("layers.0.", "layers.6."): tensor.clone()
        for name, tensor in tensors.items()
        if ".layers.0.self_attn.k_" in name or ".layers.0.self_attn.v_" in name
    }
    assert len(extra) == 3
    assert not extra.keys() & tensors.keys()
    towers = {name: torch.ones(shape) for name, shape in TOWERS.items()}
    save_file(tensors | extra | towers, folder / "model.safetensors", {"format": "pt"})
    inner = json.loads((source.folder / "config.json").read_text())
    config = {"model_type": "gemma3n", "text_config": inner}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_decoder_is_the_model_of_text(tiny: TinyFactory, tmp_path: Path) -> None:
    source = tiny("gemma3n")
    part = open_checkpoint(multimodal(source, tmp_path / "whole"))
    assert part.spec == source.checkpoint.spec
    assert part.shapes == source.checkpoint.shapes
    assert set(part.left_out) == {"vision_tower", "audio_tower", "embed_vision", "embed_audio"}
    for name in part.shapes:
        assert torch.equal(part.tensor(name), source.checkpoint.tensor(name))


def test_published_configurations(tmp_path: Path) -> None:
    """E2B's fields: the class's defaults of E4B do not remain where there are others."""
    inner = {
        "model_type": "gemma3n_text",
        "num_hidden_layers": 30,
        "intermediate_size": [8192] * 30,
        "num_kv_shared_layers": 10,
        "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 20,
        "rope_local_base_freq": 10_000.0,
        "rope_theta": 1_000_000.0,
        "rope_scaling": None,
    }
    config = {"model_type": "gemma3n", "text_config": inner}
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = read_spec(tmp_path)
    assert [layer.window for layer in spec.layers[:6]] == [512] * 4 + [None, 512]
    assert {layer.intermediate_size for layer in spec.layers} == {None}
    assert spec.layers[20].shares_kv_of == 18
    assert spec.layers[24].shares_kv_of == 19
    assert spec.layers[4].rope != spec.layers[3].rope
    assert spec.parameters == 4_435_182_688  # as transformers counts them
    assert spec.per_layer_embedding_parameters == 2_013_265_920


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"intermediate_size": [96] * 6}, "intermediate_size has 6 entries, expected one for each"),
        ({"intermediate_size": [96] * 6 + [0]}, r"intermediate_size: 6 is 0, expected a positive"),
        ({"activation_sparsity_pattern": [1.0] * 7}, "a list of numbers from 0 to below 1"),
        ({"activation_sparsity_pattern": 0.9}, "a list with one entry for each of 7"),
        ({"altup_num_inputs": 1}, "altup_num_inputs is 1, expected an integer of at least 2"),
        ({"altup_active_idx": 4}, "altup_active_idx is 4, expected an integer of at least 0 up to"),
        ({"laurel_rank": 0}, "laurel_rank is 0, expected a positive integer"),
        ({"hidden_size_per_layer_input": 0}, "hidden_size_per_layer_input is 0"),
    ],
)
def test_fields_that_are_wrong(
    tiny: TinyFactory, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    config = json.loads((tiny("gemma3n").folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    edit_config(tmp_path, **changes)
    with pytest.raises(BadCheckpoint, match=message):
        read_spec(tmp_path)
