"""Importance and pruning of LFM2's convolutions, which are as wide as the residual stream."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from edgelm.checkpoint.source import open_checkpoint
from edgelm.compress.model import load_model, spec_of
from edgelm.compress.pruning.axes import HIDDEN, tensor_axes
from edgelm.compress.pruning.importance import Importance, score
from edgelm.compress.pruning.indices import select_indices, top_k_indices
from edgelm.compress.pruning.prune import prune
from edgelm.compress.pruning.refit import refitted_parts
from edgelm.compress.pruning.shape import Shape
from edgelm.errors import BadInput
from edgelm.quantize.hessians import Hessians
from edgelm.spec.layers.mixers import ShortConv
from tests.checkpoints.gguf_files import write_gguf
from tests.checkpoints.models import decide_clearly, tiny_model
from tests.compress.pruning.test_prune import TOKENS, logits, without_epsilon
from tests.compress.saved_students import check_saves
from tests.compress.training import rows

FAMILIES = ("lfm2", "lfm2-moe")


def teacher(name: str, **over: Any) -> Any:
    """Weights so small that a rounding error of a layer stays one, and changes no expert."""
    model = tiny_model(name, **over)
    with torch.no_grad():
        for parameter in model.base_model.layers.parameters():
            if parameter.ndim > 1:
                parameter *= 0.3
    decide_clearly(model)
    return model


def convs(model: Any) -> dict[int, Any]:
    """The convolutions, by layer."""
    return {
        index: model.model.layers[index].conv
        for index, layer in enumerate(spec_of(model).layers)
        if isinstance(layer.mixer, ShortConv)
    }


def narrower(model: Any, hidden_size: int = 48) -> Shape:
    return msgspec.structs.replace(Shape.from_spec(spec_of(model)), hidden_size=hidden_size)


def silence_stream(model: Any, channels: torch.Tensor) -> None:
    """Nothing writes these channels of the residual stream."""
    spec = spec_of(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[:, channels] = 0
        for name, parameter in model.named_parameters():
            axes = tensor_axes(spec, name)
            if "norm" in name or "embed" in name:
                continue
            for dimension, axis in enumerate(axes):
                # Rows of matrices; experts are stacked before them.
                if axis == (HIDDEN,) and dimension == len(axes) - 2 + (parameter.ndim == 1):
                    parameter.index_fill_(dimension, channels, 0)


@pytest.mark.parametrize("name", FAMILIES)
def test_dead_channels_are_removed(name: str) -> None:
    """Those of the stream, and others of each convolution: its product with C is zero."""
    model, generator = teacher(name), torch.Generator().manual_seed(4)
    stream = torch.randperm(64, generator=generator)
    silence_stream(model, stream[48:])
    kept = {}
    for index, conv in convs(model).items():
        order = torch.randperm(64, generator=generator)
        kept[index] = order[:48].sort().values.tolist()
        with torch.no_grad():
            conv.in_proj.weight[64 + order[48:]] = 0
            conv.in_proj.bias[64 + order[48:]] = 0
    importance, shape = score(model, [TOKENS]), narrower(model)
    indices = select_indices(spec_of(model), shape, importance)
    assert indices.channels.tolist() == stream[:48].sort().values.tolist()
    for layer, channels in enumerate(indices.conv_channels):
        assert (channels is None) == (layer not in kept)
        assert channels is None or channels.tolist() == kept[layer]
    assert len({tuple(channels) for channels in kept.values()}) == len(kept) >= 2
    student = without_epsilon(prune(model, shape, importance))
    expected = logits(without_epsilon(model))
    atol = 1e-4 * float(expected.abs().max())
    torch.testing.assert_close(logits(student), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_are_activity_of_what_the_projection_reads(name: str) -> None:
    model = tiny_model(name)
    seen: dict[int, torch.Tensor] = {}
    hooks = [
        conv.out_proj.register_forward_pre_hook(
            lambda _, inputs, layer=layer: seen.__setitem__(layer, inputs[0])
        )
        for layer, conv in convs(model).items()
    ]
    scores = score(model, [TOKENS]).conv_channels
    for hook in hooks:
        hook.remove()
    assert scores is not None
    for layer, row in enumerate(scores):
        if layer in seen:
            torch.testing.assert_close(row, seen[layer].abs().mean(1).square().sum(0).sqrt())
        else:
            assert not row.any()


def test_every_part_of_a_convolution_loses_the_same_channels() -> None:
    """By hand: rows of B, C and x, the kernels, and columns of the output."""
    model = tiny_model("lfm2")
    importance, shape = score(model, [TOKENS]), narrower(model, 40)
    indices = select_indices(spec_of(model), shape, importance)
    student = prune(model, shape, importance)
    for layer, theirs in convs(model).items():
        ours, own = student.model.layers[layer].conv, indices.conv_channels[layer]
        assert own is not None
        stream = indices.channels
        three = torch.cat([own, 64 + own, 128 + own])
        assert torch.equal(ours.in_proj.weight, theirs.in_proj.weight[three][:, stream])
        assert torch.equal(ours.in_proj.bias, theirs.in_proj.bias[three])
        assert torch.equal(ours.conv.weight, theirs.conv.weight[own])
        assert torch.equal(ours.conv.bias, theirs.conv.bias[own])
        assert torch.equal(ours.out_proj.weight, theirs.out_proj.weight[stream][:, own])
        assert torch.equal(ours.out_proj.bias, theirs.out_proj.bias[stream])


@pytest.mark.parametrize("name", FAMILIES)
def test_student_loads_without_us(name: str, tmp_path: Path) -> None:
    # As the published configurations have it; other engines take the width from there.
    widths = ("block_dim", "conv_dim", "conv_dim_out")
    model = tiny_model(name, **dict.fromkeys(widths, 64))
    spec, shape = spec_of(model), narrower(model)
    shape = msgspec.structs.replace(shape, num_hidden_layers=spec.num_hidden_layers - 1)
    student = prune(model, shape, score(model, [TOKENS]))
    assert [getattr(student.config, width) for width in widths] == [48] * 3
    assert Shape.from_spec(spec_of(student)) == shape
    assert spec_of(student).parameters == sum(one.numel() for one in student.parameters())
    check_saves(student, tmp_path, logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_gguf_file_of_the_student(name: str, tmp_path: Path) -> None:
    model = teacher(name, **({"routed_scaling_factor": 1.0} if name == "lfm2-moe" else {}))
    student = prune(model, narrower(model), score(model, [TOKENS]))
    read = load_model(open_checkpoint(write_gguf(student, tmp_path / "model.gguf")))
    expected = logits(student)
    atol = 1e-4 * float(expected.abs().max())
    torch.testing.assert_close(logits(read), expected, rtol=0, atol=atol)


def test_outputs_are_refitted(tmp_path: Path) -> None:
    model = tiny_model("lfm2")
    spec, shape, text = spec_of(model), narrower(model), rows(100).batch(range(100))
    moments = Hessians(tmp_path, spec, parts=refitted_parts(spec))
    with torch.inference_mode(), moments.watching(model):
        model.base_model(input_ids=text, use_cache=False)
    importance = score(model, [rows().batch(range(8))])
    cut = prune(model, shape, importance)
    refitted = prune(model, shape, importance, moments=moments)
    state, other = cut.state_dict(), refitted.state_dict()
    changed = {name for name, tensor in state.items() if not torch.equal(tensor, other[name])}
    assert changed == {f"model.layers.{layer}.conv.out_proj.weight" for layer in convs(model)}
    read: dict[int, torch.Tensor] = {}
    for layer, conv in convs(model).items():
        conv.out_proj.register_forward_pre_hook(
            lambda _, inputs, layer=layer: read.__setitem__(layer, inputs[0])
        )
    with torch.inference_mode():
        model.base_model(input_ids=text, use_cache=False)
        stream = top_k_indices(importance.channels, 48)
        for layer, conv in convs(model).items():
            assert importance.conv_channels is not None
            own = top_k_indices(importance.conv_channels[layer], 48)
            expected = conv.out_proj(read[layer])[..., stream]
            errors = [
                (one.model.layers[layer].conv.out_proj(read[layer][..., own]) - expected)
                for one in (cut, refitted)
            ]
            before, after = (error.square().mean() for error in errors)
            assert after < 0.98 * before, f"layer {layer}"


def test_scores_that_lack_channels() -> None:
    model = tiny_model("lfm2")
    scores = score(model, [TOKENS])
    older = Importance(scores.heads, scores.neurons, scores.channels, scores.layers)
    shape = Shape.from_spec(spec_of(model))
    prune(model, msgspec.structs.replace(shape, intermediate_size=64), older)
    with pytest.raises(BadInput, match="cannot prune hidden_size: these importance scores are of"):
        prune(model, narrower(model), older)


def test_scores_of_another_model() -> None:
    model = tiny_model("lfm2")
    scores = vars(score(model, [TOKENS]))
    scores["conv_channels"] = scores["conv_channels"][:, :40]
    with pytest.raises(BadInput, match=r"conv_channels \(5, 40\), this one has \(5, 64\); score"):
        Importance(**scores).check(spec_of(model))
