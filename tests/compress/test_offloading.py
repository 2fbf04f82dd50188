"""A model whose layers stay in host memory: it computes the same, and holds no copies."""

from pathlib import Path
from typing import Any

import pytest
import torch

import edgelm.compress.stages.state as state
from edgelm.checkpoint.source import read_spec
from edgelm.compress.offloading import offload_layers, room_for_weights
from edgelm.compress.pipeline import compress_model, run_stages_until
from edgelm.compress.pruning.importance import score
from edgelm.compress.run.run_folder import Part
from tests.checkpoints.models import tiny_model
from tests.compress.recipes import EVALUATE, PRUNE, recipe_of, weights_of, workshop
from tests.compress.training import same

CPU = torch.device("cpu")
TOKENS = torch.arange(48).view(4, 12)


def bytes_of(model: Any) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3-moe", "granite-hybrid", "lfm2"])
@pytest.mark.parametrize("share", [0.0, 0.7])
def test_scores_are_the_same(family: str, share: float) -> None:
    """Hooks of the scores read weights, too (experts)."""
    model, whole = tiny_model(family), tiny_model(family)
    layers = model.base_model.layers
    offloaded = offload_layers(model, CPU, int(share * bytes_of(whole)))
    assert (offloaded == len(layers)) if share == 0 else (0 < offloaded <= len(layers))
    found, expected = (score(one, [TOKENS[:2], TOKENS[2:]]) for one in (model, whole))
    for name, value in vars(expected).items():
        assert value is None or torch.equal(getattr(found, name), value), name
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, whole(TOKENS).logits)


def test_copies_exist_while_a_layer_runs() -> None:
    model = tiny_model("llama")
    layer = model.base_model.layers[0]
    weight, seen = layer.mlp.up_proj.weight, list[int]()
    offload_layers(model, CPU, 0)
    host = weight.data_ptr()
    layer.mlp.up_proj.register_forward_hook(
        lambda module, *_: seen.append(module.weight.data_ptr())
    )
    with torch.no_grad():
        model(TOKENS)
    assert seen != [host]
    assert weight.data_ptr() == host

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    layer.mlp.down_proj.register_forward_hook(fail)
    with torch.no_grad(), pytest.raises(RuntimeError, match="out of memory"):
        model(TOKENS)
    assert weight.data_ptr() == host, "also after an exception"


def test_what_fits_is_not_offloaded() -> None:
    model = tiny_model("llama")
    assert offload_layers(model, CPU, bytes_of(model)) == 0
    assert not model.base_model.layers[0]._forward_pre_hooks
    assert room_for_weights(CPU) is None


@pytest.mark.parametrize("spare", [True, False])
def test_evaluation_beside_a_second_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spare: bool
) -> None:
    """Where teacher and student fit together, nothing is copied."""
    folder, lines = workshop(tmp_path), list[str]()
    recipe = recipe_of(folder, "[prune]\nnum_hidden_layers = 2\n", EVALUATE)
    run_stages_until(recipe, folder / "small", Part("prune"))
    sizes = [
        read_spec(path).parameters
        for path in (folder / "teacher", folder / "small.run" / "prune" / "model")
    ]
    room = 4 * (sum(sizes) if spare else sizes[0])
    monkeypatch.setattr(state, "room_for_weights", lambda _: room)
    compress_model(recipe, folder / "small", report=lines.append)
    copied = [line for line in lines if "stay in host memory" in line]
    assert bool(copied) != spare


def test_a_recipe_on_a_device_that_is_too_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same student, importance from copied layers and pruning in host memory."""
    folder = workshop(tmp_path)
    cached = '[distill]\ntokens = 256\nbatch_size = 2\n[distill.cache]\nkind = "top-k"\nsize = 8\n'
    recipe, lines = recipe_of(folder, PRUNE, cached), list[str]()
    compress_model(recipe, folder / "whole")
    monkeypatch.setattr(state, "room_for_weights", lambda _: 20_000)
    compress_model(recipe, folder / "small", report=lines.append)
    said = "cpu has room for 0.0 MB of weights: 4 of 4 layers stay in host memory"
    assert sum(line.startswith(said) for line in lines) == 3, "importance, cache, held-out figure"
    assert "cpu has no room for teacher and student in fp32: on the CPU" in lines
    assert same(weights_of(folder / "small"), weights_of(folder / "whole"))
