"""The reference's configuration is the one that `from_pretrained` builds, without its surprises."""

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from edgelm.checkpoint.meta_model import empty_model, hf_config
from edgelm.checkpoint.source import open_checkpoint
from edgelm.errors import BadCheckpoint
from tests.checkpoints.models import TINY
from tests.checkpoints.weight_folders import edit_config
from tests.conftest import TinyFactory


@pytest.fixture
def folder(tiny: TinyFactory, tmp_path: Path) -> Path:
    return shutil.copytree(tiny("llama").folder, tmp_path / "model")


@pytest.mark.parametrize("name", sorted(TINY))
def test_the_class_and_fields_of_from_pretrained(tiny: TinyFactory, name: str) -> None:
    source = tiny(name)
    theirs = AutoConfig.from_pretrained(source.folder, trust_remote_code=False).to_dict()
    ours = hf_config(source.checkpoint).to_dict()
    own = {"dtype", "transformers_version", "head_dim", "_name_or_path"}
    fields = (ours.keys() | theirs.keys()) - own
    assert {name: ours.get(name) for name in fields} == {name: theirs.get(name) for name in fields}


def test_a_mistral_with_kinds_of_layers_is_a_ministral(tiny: TinyFactory, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("mistral").folder, tmp_path / "model")
    edit_config(folder, layer_types=["sliding_attention", "full_attention"] * 2)
    checkpoint = open_checkpoint(folder)
    assert type(hf_config(checkpoint)) is type(
        AutoConfig.from_pretrained(folder, trust_remote_code=False)
    )
    assert [layer.window for layer in checkpoint.spec.layers] == [8, None, 8, None]


@pytest.mark.parametrize(
    "over",
    [
        {"num_labels": 10**6},
        {"return_dict": False, "output_hidden_states": True, "output_attentions": True},
        {"auto_map": {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "x.X"}},
        {"dtype": "no_such_type", "torch_dtype": 5},
        {"attn_implementation": "flash_attention_2", "_attn_implementation": "x"},
        {"id2label": 5, "problem_type": "x", "architectures": 5},
        {"pad_token_id": 100_000},
        {"pad_token_id": -1},
        {"name_or_path": 5, "layer_types": ["full_attention"] * 4},
    ],
)
def test_fields_that_are_not_the_decoders_do_nothing(folder: Path, over: dict[str, Any]) -> None:
    plain = hf_config(open_checkpoint(folder))
    edit_config(folder, **over)
    config = hf_config(open_checkpoint(folder))
    assert config.use_cache
    assert config.return_dict
    model = empty_model(config, torch.float32)
    assert model.num_parameters() == empty_model(plain, torch.float32).num_parameters()


@pytest.mark.parametrize(
    ("over", "message"),
    [({"rms_norm_eps": 1}, "rms_norm_eps"), ({"attention_dropout": "x"}, "attention_dropout")],
)
def test_what_transformers_refuses_is_named(
    folder: Path, over: dict[str, Any], message: str
) -> None:
    edit_config(folder, **over)
    with pytest.raises(BadCheckpoint, match=f"transformers rejects config.json .*{message}"):
        hf_config(open_checkpoint(folder))


def test_the_checkpoints_configuration_is_not_changed(tiny: TinyFactory, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("gemma3").folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    linear = {"rope_type": "linear", "factor": 8.0}
    config |= {"rope_parameters": None, "rope_scaling": linear}
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(folder)
    before = deepcopy(checkpoint.config)
    hf_config(checkpoint)
    assert checkpoint.config == before
