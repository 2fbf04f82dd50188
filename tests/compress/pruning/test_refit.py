"""What remains of a matrix takes over for what was removed."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from edgelm.compress.model import spec_of
from edgelm.compress.pruning.axes import layer_of
from edgelm.compress.pruning.importance import score
from edgelm.compress.pruning.indices import top_k_indices
from edgelm.compress.pruning.prune import prune
from edgelm.compress.pruning.refit import refitted, refitted_parts
from edgelm.compress.pruning.shape import Shape
from edgelm.quantize.hessians import Hessians
from edgelm.spec.prunable import pruned_mlp_size
from tests.checkpoints.models import tiny_model
from tests.compress.training import rows

# Transformers pads rows of Mamba-2 to whole chunks.
_CHUNKS = {"nemotron-h": {"chunk_size": 16}, "falcon-h1": {"mamba_chunk_size": 16}}
KEPT = torch.tensor([0, 2, 3])


def inputs(count: int = 400, seed: int = 0) -> torch.Tensor:
    """Correlated inputs [count, 5]: the last two are mixtures of the others."""
    free = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    mixed = free @ torch.tensor([[0.5, 1.0], [-1.0, 0.3], [0.2, 0.7]])
    return torch.cat([free[:, :1], mixed[:, :1], free[:, 1:], mixed[:, 1:]], dim=1)


def test_outputs_as_least_squares_gives_them() -> None:
    x = inputs()
    weight = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    found = refitted(weight, x.T @ x, KEPT)
    expected = np.linalg.lstsq(x[:, KEPT].numpy(), (x @ weight.T).numpy(), rcond=None)[0].T
    cut = (x[:, KEPT] @ weight[:, KEPT].T - x @ weight.T).square().sum()
    ours = (x[:, KEPT] @ found.T - x @ weight.T).square().sum()
    best = (x[:, KEPT] @ torch.from_numpy(expected).T - x @ weight.T).square().sum()
    assert best <= ours < 0.01 * cut
    assert found.dtype == weight.dtype
    scaled = refitted(weight, 1e-4 * (x.T @ x), KEPT)
    torch.testing.assert_close(scaled, found)


def test_nothing_removed_changes_nothing() -> None:
    weight = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    assert refitted(weight, torch.eye(5), torch.arange(5)) is weight


def test_inputs_that_are_never_active() -> None:
    weight = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(refitted(weight, torch.zeros(5, 5), KEPT), weight[:, KEPT])


def test_independent_inputs_cannot_take_over() -> None:
    weight = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(refitted(weight, 3 * torch.eye(5), KEPT), weight[:, KEPT])


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Any:
    def collect(model: Any) -> Hessians:
        found = Hessians(
            tmp_path_factory.mktemp("moments"), spec_of(model), parts=refitted_parts(spec_of(model))
        )
        with torch.inference_mode(), found.watching(model):
            model.model(input_ids=rows(400).batch(range(400)))
        return found

    return collect


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "phi3", "olmo2"])
def test_layers_give_nearer_outputs(moments: Any, family: str) -> None:
    model = tiny_model(family)
    spec = spec_of(model)
    importance = score(model, [rows().batch(range(8))])
    size = spec.intermediate_size * 2 // 3
    shape = msgspec.structs.replace(Shape.from_spec(spec), intermediate_size=size)
    cut = prune(model, shape, importance)
    refitted = prune(model, shape, importance, moments=moments(model))
    text = rows(seed=1).batch(range(24))
    for layer, inputs in enumerate(inputs_of_down(model, text)):
        outputs = down(model, layer, inputs)
        kept = inputs[..., top_k_indices(importance.neurons[layer], size)]
        before = (down(cut, layer, kept) - outputs).square().mean()
        after = (down(refitted, layer, kept) - outputs).square().mean()
        assert after < before, f"layer {layer}, on text that was not seen"


def inputs_of_down(model: Any, tokens: torch.Tensor) -> list[torch.Tensor]:
    """What the second matrix of every layer's MLP reads."""
    seen: list[torch.Tensor] = []
    hooks = [
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for layer in model.model.layers
    ]
    with torch.inference_mode():
        model.model(input_ids=tokens)
    for hook in hooks:
        hook.remove()
    return seen


def down(model: Any, layer: int, inputs: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model.model.layers[layer].mlp.down_proj(inputs)  # type: ignore[no-any-return]


def test_the_full_shape_is_still_the_identity(moments: Any) -> None:
    model = tiny_model("llama")
    importance = score(model, [rows().batch(range(8))])
    same = prune(model, Shape.from_spec(spec_of(model)), importance, moments=moments(model))
    for (name, ours), (_, theirs) in zip(
        same.state_dict().items(), model.state_dict().items(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_only_what_is_needed_is_collected(moments: Any, tmp_path: Path) -> None:
    model = tiny_model("llama")
    layers = range(spec_of(model).num_hidden_layers)
    wanted = {f"layers.{layer}.{part}" for layer in layers for part in ("mlp.down", "attention.o")}
    assert set(moments(model).groups) == wanted


@pytest.mark.parametrize(
    "family",
    ["lfm2", "qwen3.5", "glm4", "phi3", "nemotron-h", "falcon-h1", "gemma3n", "gemma4"],
)
def test_other_layers_and_names_are_refitted_too(moments: Any, family: str) -> None:
    """Layers without attention, gates over heads, matrices with other names, stacked ones."""
    model = tiny_model(family, **_CHUNKS.get(family, {}))
    spec = spec_of(model)
    importance = score(model, [rows().batch(range(8))])
    size = spec.intermediate_size * 2 // 3
    shape = msgspec.structs.replace(Shape.from_spec(spec), intermediate_size=size)
    cut = prune(model, shape, importance).state_dict()
    refitted = prune(model, shape, importance, moments=moments(model)).state_dict()
    changed = {name for name, tensor in cut.items() if not torch.equal(tensor, refitted[name])}
    kept = {
        index: after
        for index, layer in enumerate(spec.layers)
        if (after := pruned_mlp_size(spec, layer, size)) < spec.mlp_size(layer)
    }
    assert {layer_of(name): refitted[name].shape for name in changed} == {
        index: (spec.hidden_size, after) for index, after in kept.items()
    }
    assert len(changed) == len(kept) >= 2
