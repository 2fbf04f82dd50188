"""Draft heads in checkpoints: found, checked and read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgelm.checkpoint.drafts.draft_head import draft_head
from edgelm.checkpoint.source import open_checkpoint
from edgelm.errors import BadCheckpoint, BadInput
from tests.checkpoints.draft_heads import WEIGHTS, save_with_draft_head

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_with_draft_head(tmp_path / "source")


def test_its_tensors(source: Path) -> None:
    tensors = load_file(source / WEIGHTS)
    model = open_checkpoint(source)
    assert model.left_out == ("mtp",)
    assert not any("fc" in name for name in model.shapes)
    head = draft_head(model)
    head.check()
    assert {name.removeprefix("model.") for name in head.shapes} == {
        name.removeprefix("mtp.") for name in tensors if name.startswith("mtp.")
    }
    for name in head.shapes:
        assert torch.equal(head.tensor(name), tensors[name.replace("model.", "mtp.", 1)])


def test_infinity_is_found(source: Path) -> None:
    change(source, lambda one: one["mtp.norm.weight"].fill_(float("inf")))
    head = draft_head(open_checkpoint(source))
    with pytest.raises(BadCheckpoint, match=r"model\.norm\.weight"):
        head.tensor("model.norm.weight")


def _other_size(tensors: Tensors) -> None:
    tensors["mtp.fc.weight"] = torch.zeros(32, 64)


def _levels(tensors: Tensors) -> None:
    tensors["mtp.fc.weight"] = torch.zeros(64, 128, dtype=torch.int8)


def _second_layer(tensors: Tensors) -> None:
    tensors["mtp.layers.1.mlp.up_proj.weight"] = torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_other_size, r"fc\.weight has shape \[32, 64\]"),
        (_levels, "I8"),
        (_second_layer, "1 tensors that do not fit"),
        (lambda one: one.pop("mtp.norm.weight"), r"lacks 1 of 15 tensors, first 'model\.norm"),
    ],
    ids=["size", "type", "layer", "missing"],
)
def test_heads_that_do_not_fit(
    source: Path, damage: Callable[[Tensors], object], message: str
) -> None:
    change(source, damage)
    with pytest.raises(BadCheckpoint, match=rf"the draft head \(mtp\.\*\): .*{message}"):
        draft_head(open_checkpoint(source))


def test_a_head_of_several_layers_is_refused(source: Path) -> None:
    config = json.loads((source / "config.json").read_text()) | {"mtp_num_hidden_layers": 2}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="mtp_num_hidden_layers is 2"):
        draft_head(open_checkpoint(source))


def change(source: Path, damage: Callable[[Tensors], object]) -> None:
    tensors = load_file(source / WEIGHTS)
    damage(tensors)
    save_file(tensors, source / WEIGHTS, {"format": "pt"})
