"""Importance and pruning of the heads of Mamba-2 layers."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from edgelm.compress.model import load_model, spec_of
from edgelm.compress.pruning.importance import Importance, score
from edgelm.compress.pruning.indices import select_indices
from edgelm.compress.pruning.prune import prune
from edgelm.compress.pruning.refit import refitted_parts
from edgelm.compress.pruning.shape import Shape
from edgelm.errors import BadInput
from edgelm.quantize.hessians import Hessians
from edgelm.spec.layers.mixers import Mamba2
from edgelm.spec.prunable import mamba_of
from edgelm.spec.tensor_names import stored_name
from tests.checkpoints.models import tiny_model
from tests.compress.pruning.test_prune import TOKENS, logits, without_epsilon
from tests.compress.saved_students import check_saves
from tests.conftest import TinyFactory

# What to prune to: Granite's class has heads for an integer multiple of the hidden size only.
SIZES = {
    "granite-hybrid": {"mamba_num_heads": 4},
    "granite-hybrid-moe": {"mamba_num_heads": 4, "num_experts": 5},
    "nemotron-h": {"mamba_num_heads": 4},
    "falcon-h1": {"mamba_num_heads": 6},
    "falcon-h1-norm": {"mamba_num_heads": 2},
}


def mamba(model: Any, layer: int) -> Any:
    name = stored_name(spec_of(model).family, f"model.layers.{layer}.mamba.dt_bias")
    return model.get_submodule(name.rpartition(".")[0])


def mamba_layers(model: Any) -> list[int]:
    layers = enumerate(spec_of(model).layers)
    return [at for at, layer in layers if isinstance(layer.recurrent, Mamba2)]


def smaller(model: Any, **sizes: int) -> Shape:
    return msgspec.structs.replace(Shape.from_spec(spec_of(model)), **sizes)


def silence(model: Any, layer: int, heads: torch.Tensor) -> None:
    """Nothing reaches these heads, so that their outputs are zero."""
    module, own = mamba(model, layer), mamba_of(spec_of(model))
    assert own is not None
    channels = (heads[:, None] * own.head_dim + torch.arange(own.head_dim)).flatten()
    with torch.no_grad():
        module.in_proj.weight[own.size + channels] = 0
        for bias, start in ((module.in_proj.bias, own.size), (module.conv1d.bias, 0)):
            if bias is not None:
                bias[start + channels] = 0


@pytest.mark.parametrize("name", SIZES)
def test_silent_heads_are_removed(calm: TinyFactory, name: str) -> None:
    """Of each group as many, others in each layer."""
    model = load_model(calm(name).folder)
    own, generator, kept = mamba_of(spec_of(model)), torch.Generator().manual_seed(4), {}
    assert own is not None
    shape = smaller(model, mamba_num_heads=SIZES[name]["mamba_num_heads"])
    per_group, stay = own.heads // own.n_groups, SIZES[name]["mamba_num_heads"] // own.n_groups
    for layer in mamba_layers(model):
        orders = [torch.randperm(per_group, generator=generator) for _ in range(own.n_groups)]
        first = [group * per_group for group in range(own.n_groups)]
        silence(
            model,
            layer,
            torch.cat([at + order[stay:] for at, order in zip(first, orders, strict=True)]),
        )
        kept[layer] = sorted(
            int(at + one) for at, order in zip(first, orders, strict=True) for one in order[:stay]
        )
    importance = score(model, [TOKENS])
    for layer, heads in enumerate(select_indices(spec_of(model), shape, importance).mamba_heads):
        assert (heads is None) == (layer not in kept)
        assert heads is None or heads.tolist() == kept[layer]
    student = without_epsilon(prune(model, shape, importance))
    expected = logits(without_epsilon(model))
    atol = 1e-4 * float(expected.abs().max())
    torch.testing.assert_close(logits(student), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("name", ["nemotron-h", "falcon-h1"])
def test_scores_are_norms_of_what_the_projection_reads(name: str) -> None:
    model, own = tiny_model(name), mamba_of(spec_of(tiny_model(name)))
    assert own is not None
    seen: dict[int, torch.Tensor] = {}
    hooks = [
        mamba(model, layer).out_proj.register_forward_pre_hook(
            lambda _, inputs, layer=layer: seen.__setitem__(layer, inputs[0])
        )
        for layer in mamba_layers(model)
    ]
    scores = score(model, [TOKENS]).mamba_heads
    for hook in hooks:
        hook.remove()
    assert scores is not None
    for layer, row in enumerate(scores):
        if layer not in seen:
            assert not row.any()
            continue
        norms = seen[layer].unflatten(-1, (own.heads, own.head_dim)).norm(dim=-1)
        torch.testing.assert_close(row, norms.mean(1).square().sum(0).sqrt())


@pytest.mark.parametrize("name", SIZES)
def test_student_loads_without_us(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    spec = spec_of(model)
    sizes = {"num_hidden_layers": spec.num_hidden_layers - 1} | SIZES[name]
    if name.startswith("granite"):  # the hidden size by the same share
        sizes |= {"hidden_size": 48, "mamba_num_heads": 6}
    shape = smaller(model, **sizes)
    student = prune(model, shape, score(model, [TOKENS]))
    assert Shape.from_spec(spec_of(student)) == shape
    assert mamba_of(spec_of(student)) == mamba_of(shape.applied_to(spec))
    assert spec_of(student).parameters == sum(one.numel() for one in student.parameters())
    check_saves(student, tmp_path, logits)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("nemotron-h", {"mamba_num_heads": 6}, "each of 4 groups share B and C; use a multiple of"),
        (
            "granite-hybrid",
            {"mamba_num_heads": 6},
            "to hidden_size 64 with 6 heads of 16 channels in Mamba-2 layers: .*; use "
            "mamba_num_heads 4 or 8",
        ),
        (
            "granite-hybrid",
            {"hidden_size": 48},
            "to hidden_size 48 with 8 heads of 16 .*; use mamba_num_heads 6$",
        ),
        (
            "granite-hybrid",
            {"hidden_size": 40, "mamba_num_heads": 4},
            "to hidden_size 40 with 4 heads of 16 .*; use hidden_size 32 or 48",
        ),
        ("llama", {"mamba_num_heads": 2}, "mamba_num_heads of llama: it has no Mamba-2 layers"),
        ("falcon-h1", {"mamba_num_heads": 10}, "cannot prune mamba_num_heads to 10; expected 1 to"),
    ],
)
def test_sizes_that_cannot_be(name: str, change: dict[str, int], message: str) -> None:
    model = tiny_model(name)
    with pytest.raises(BadInput, match=message):
        smaller(model, **change).check_within(spec_of(model))


def test_a_decoder_without_such_layers_keeps_none() -> None:
    """The class checks their sizes all the same (Granite 4 Micro, or a student of others)."""
    kinds = ["full_attention"] * 2
    model = tiny_model("granite-hybrid", layer_types=kinds, num_hidden_layers=2)
    shape = smaller(model, hidden_size=44, intermediate_size=64)
    student = prune(model, shape, score(model, [TOKENS]))
    assert Shape.from_spec(spec_of(student)) == shape
    assert type(student.config)(**student.config.to_dict()).hidden_size == 44


def test_all_heads_beside_a_narrower_stream() -> None:
    """The multiple grows: eight heads are four times as wide as half of the channels."""
    model = tiny_model("granite-hybrid")
    shape = smaller(model, hidden_size=32, mamba_num_heads=8)
    student = prune(model, shape, score(model, [TOKENS]))
    assert student.config.mamba_expand == 4
    assert Shape.from_spec(spec_of(student)) == shape


def test_scores_that_lack_heads() -> None:
    model = tiny_model("nemotron-h")
    scores = score(model, [TOKENS])
    older = Importance(scores.heads, scores.neurons, scores.channels, scores.layers)
    prune(model, smaller(model, intermediate_size=64), older)
    with pytest.raises(BadInput, match="cannot prune mamba_num_heads: these importance scores are"):
        prune(model, smaller(model, mamba_num_heads=4), older)


@pytest.mark.parametrize(("name", "changes"), [("falcon-h1", True), ("falcon-h1-norm", False)])
def test_only_outputs_without_a_norm_are_refitted(tmp_path: Path, name: str, changes: bool) -> None:
    """A norm over the channels of several heads changes what the others give."""
    model = tiny_model(name)
    moments = Hessians(tmp_path, spec_of(model), parts=refitted_parts(spec_of(model)))
    with torch.inference_mode(), moments.watching(model):
        model.base_model(input_ids=TOKENS, use_cache=False)
    shape, importance = smaller(model, **SIZES[name]), score(model, [TOKENS])
    cut = prune(model, shape, importance).state_dict()
    refitted = prune(model, shape, importance, moments=moments).state_dict()
    changed = {key for key, tensor in cut.items() if not torch.equal(tensor, refitted[key])}
    outputs = {f"model.layers.{at}.mamba.out_proj.weight" for at in mamba_layers(model)}
    assert changed == (outputs if changes else set())
