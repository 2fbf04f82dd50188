"""Training through the rounding that export does, and that export finds the same levels again."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from edgelm.checkpoint.source import open_checkpoint
from edgelm.compress.data.packing import PackedTokens
from edgelm.compress.distillation.loss.objective import Objective
from edgelm.compress.distillation.student_teacher import Distiller
from edgelm.compress.distillation.train import distill
from edgelm.compress.evaluation.held_out import held_out_divergence
from edgelm.compress.model import load_model, save_model
from edgelm.compress.qad.fake_quantizer import FakeQuantizer, Grid
from edgelm.export.pipeline import export_model
from edgelm.export.quantize.weights import Weights
from edgelm.quantize.precision import Int4, Int8, KvType, describe
from edgelm.quantize.rtn import Quantized, quantize
from tests.checkpoints.models import tiny_model
from tests.checkpoints.tiny_chat import VOCAB, save_tiny_chat
from tests.compress.qad.exported import blocks, exported_alike, stored
from tests.compress.tokenizers import tiny_fast_tokenizer
from tests.compress.training import SETTINGS, same, weights

# Matrices have 64 columns, those of down_proj 96: groups of 64 do not divide it.
PRECISIONS: list[Int4 | Int8] = [
    Int4(16),
    Int4(64),
    Int4(16, symmetric=True),
    Int4(64, symmetric=True),
    Int8(32),
    Int8(64),
    Int8(32, symmetric=False),
]
TOKENS = torch.randint(0, 128, (2, 12), generator=torch.Generator().manual_seed(1))


def plain_grids(model: Any, precision: Int4 | Int8) -> dict[str, Grid]:
    """Of every matrix as it is."""
    return {
        name: Grid.from_quantized(quantize(parameter.detach(), precision))
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2
    }


def by_export(tensor: torch.Tensor, precision: Int4 | Int8) -> torch.Tensor:
    return quantize(tensor.detach(), precision).dequantize(tensor.shape[1])


@pytest.mark.parametrize("precision", PRECISIONS, ids=describe)
@pytest.mark.parametrize("name", ["llama-untied", "phi3"])
def test_rounds_what_export_rounds(name: str, precision: Int4 | Int8) -> None:
    model = tiny_model(name)
    masters = weights(model)
    quantizer = FakeQuantizer(model, plain_grids(model, precision))
    with quantizer.quantized():
        inside = weights(model)
    for key, master in masters.items():
        expected = by_export(master, precision) if master.ndim == 2 else master
        assert torch.equal(inside[key], expected), key
    assert not torch.equal(inside["lm_head.weight"], masters["lm_head.weight"])
    assert same(weights(model), masters)
    with pytest.raises(KeyboardInterrupt), quantizer.quantized():
        raise KeyboardInterrupt
    assert same(weights(model), masters)


@pytest.mark.parametrize("precision", [Int4(16), Int8(32)], ids=describe)
def test_gradients_go_straight_through(precision: Int4 | Int8) -> None:
    """They are taken at the rounded weights and arrive at the masters."""
    model, rounded = tiny_model("llama"), tiny_model("llama")
    with torch.no_grad():
        for parameter in rounded.parameters():
            if parameter.ndim == 2:
                parameter.copy_(by_export(parameter, precision))
    rounded(TOKENS, labels=TOKENS).loss.backward()
    masters = weights(model)
    quantizer = FakeQuantizer(model, plain_grids(model, precision))
    with quantizer.quantized():
        model(TOKENS, labels=TOKENS).loss.backward()
    for key, expected in rounded.named_parameters():
        assert torch.equal(model.get_parameter(key).grad, expected.grad), key
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    for key, master in masters.items():
        moved = master - 1e-3 * model.get_parameter(key).grad
        torch.testing.assert_close(model.get_parameter(key).detach(), moved)


@pytest.mark.parametrize("precision", [Int4(16), Int4(64, symmetric=True)], ids=describe)
def test_the_grid_stays(precision: Int4) -> None:
    model = tiny_model("llama")
    weight = model.model.layers[0].mlp.down_proj.weight
    old = quantize(weight.detach(), precision)
    quantizer = FakeQuantizer(model, plain_grids(model, precision))
    with torch.no_grad():
        weight.mul_(1.7)
    with quantizer.quantized():
        moved = weight.detach().clone()
    expected = nearest(weight.detach(), old)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-6)
    assert (moved - weight.detach()).abs().max() > 2 * float(old.scales.abs().max()), "clamped"
    quantizer.finish()
    assert torch.equal(weight.detach(), moved)


def nearest(weight: torch.Tensor, grid: Quantized) -> torch.Tensor:
    """The nearest of all levels of a grid, by trying them."""
    zeros = grid.middle if grid.zero_points is None else grid.zero_points[..., None].float()
    levels = torch.arange(1 << grid.bits)
    values = (levels - zeros) * grid.scales.float()[..., None]  # [rows, blocks, levels]
    parts = blocks(weight, grid.group_size)
    best = (parts[..., None] - values[..., None, :]).abs().argmin(-1)
    return values.gather(-1, best).flatten(1)[:, : weight.shape[1]]


def test_every_matrix_must_be_found() -> None:
    model = tiny_model("llama")
    grids = plain_grids(model, Int4(16))
    with pytest.raises(KeyError, match=r"the model has no model\.layers\.9\.up_proj\.weight"):
        FakeQuantizer(model, grids | {"model.layers.9.up_proj.weight": next(iter(grids.values()))})


def test_matrices_of_wrapped_layers_are_found() -> None:
    """As under activation checkpointing and compiled layers."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = tiny_model("llama")
    grids = plain_grids(model, Int4(16))
    model.model.layers[0] = checkpoint_wrapper(model.model.layers[0])
    model.model.layers[1] = torch.compile(model.model.layers[1])
    names = [name for name, _ in model.named_parameters()]
    assert any("_checkpoint_wrapped_module" in name for name in names)
    assert any("_orig_mod" in name for name in names)
    with FakeQuantizer(Distiller(model, None, Objective(cross_entropy=1.0)), grids).quantized():
        for name in ("layers.0", "layers.1"):
            inner = dict(model.model.named_parameters())
            [weight] = [one for key, one in inner.items() if name in key and "down_proj" in key]
            assert torch.equal(weight.detach(), by_export(weight, Int4(16)))


def test_the_projection_of_hidden_states_is_no_part_of_the_student() -> None:
    student, teacher = tiny_model("llama", hidden_size=32), tiny_model("llama")
    distiller = Distiller(student, teacher, Objective(), layer_map=((0, 0),))
    assert distiller.hidden is not None
    assert distiller.hidden.up is not None
    before = distiller.hidden.up.weight.detach().clone()
    quantizer = FakeQuantizer(distiller, plain_grids(student, Int4(16)))
    with quantizer.quantized():
        assert torch.equal(distiller.hidden.up.weight, before)
        table = student.lm_head.weight.detach().clone()
    quantizer.finish()
    assert torch.equal(distiller.hidden.up.weight, before)
    assert torch.equal(student.lm_head.weight, table)


# A block that spans two steps fewer than the grid has may be given a finer grid the second time.
FOUND_AGAIN: list[tuple[Int4 | Int8, float]] = [
    (Int4(16), 0.999),
    (Int4(64), 1.0),
    (Int4(16, symmetric=True), 1.0),
    (Int4(64, symmetric=True), 1.0),
    (Int8(32), 1.0),
    (Int8(64), 1.0),
]


@pytest.mark.parametrize(("precision", "share"), FOUND_AGAIN, ids=str)
def test_finished_weights_lie_on_their_grid(precision: Int4 | Int8, share: float) -> None:
    model = tiny_model("llama")
    masters = weights(model)
    quantizer = FakeQuantizer(model, plain_grids(model, precision))
    quantizer.finish()
    kept, total = 0, 0
    for key, weight in weights(model).items():
        if weight.ndim != 2:
            assert torch.equal(weight, masters[key])
            continue
        assert torch.equal(weight, by_export(masters[key], precision))
        again = by_export(weight, precision)
        alike = (blocks(weight, precision.group_size) == blocks(again, precision.group_size)).all(
            -1
        )
        kept, total = kept + int(alike.sum()), total + alike.numel()
    assert kept >= share * total


LEARNED = Int4(16)
"""The precision whose student is trained for so long that it is better than a rounded teacher."""
Trained = Callable[[Int4 | Int8, Int4 | Int8], Path]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Students after quantization-aware distillation, as checkpoints beside their teachers."""

    def make(precision: Int4 | Int8, head: Int4 | Int8) -> Path:
        folder = tmp_path_factory.mktemp("qad")
        source = save_tiny_chat(folder / "teacher", "llama-untied")
        teacher, student = load_model(source), load_model(source)
        tokens = np.random.default_rng(0).integers(4, VOCAB, (400, 16)).astype(np.int32)
        both = (precision, head)
        steps = 60 if precision == LEARNED else 12  # which moves the weights, and is quicker
        settings = msgspec.structs.replace(
            SETTINGS, tokens=steps * 4 * 16, learning_rate=2e-4, checkpoint_steps=steps
        )
        list(
            distill(
                student, teacher, PackedTokens(tokens), settings, folder / "run", precision=both
            )
        )
        save_model(student, tiny_fast_tokenizer(), folder / "student", torch.float32)
        return folder / "student"

    return cache(make)


@pytest.mark.slow
def test_training_makes_up_for_rounding(trained: Trained) -> None:
    precision = LEARNED
    student = trained(precision, precision)
    teacher, rounded = (load_model(student.parent / "teacher") for _ in range(2))
    FakeQuantizer(rounded, plain_grids(rounded, precision)).finish()
    held_out = torch.randint(4, VOCAB, (16, 16), generator=torch.Generator().manual_seed(5))
    before = held_out_divergence(rounded, teacher, held_out)
    assert held_out_divergence(load_model(student), teacher, held_out) < 0.95 * before


@pytest.mark.parametrize(
    ("precision", "share"),
    [(Int4(16), 0.99), (Int4(32, symmetric=True), 0.999), (Int8(32), 1.0)],
    ids=str,
)
def test_export_finds_the_same_weights(
    trained: Trained, tmp_path: Path, precision: Int4 | Int8, share: float
) -> None:
    source = trained(precision, precision)
    bundle = tmp_path / "bundle"
    manifest = export_model(
        source,
        bundle,
        precision="int4" if isinstance(precision, Int4) else "int8",
        group_size=precision.group_size,
        symmetric=precision.symmetric,
        method="rtn",
        kv="fp32",
        gate="off",
    )
    student = Weights(open_checkpoint(source))
    assert set(manifest.precision) == set(student.groups())
    assert set(manifest.precision.values()) == {precision}
    for group, alike in exported_alike(bundle, student, manifest.precision).items():
        assert alike.float().mean() >= share, group


@pytest.mark.parametrize("positive", [False, True], ids=["onnxruntime", "tensorrt"])
def test_levels_without_zero_points_are_every_engines(trained: Trained, positive: bool) -> None:
    """TensorRT has no negative scales, so that it lacks a level on one side."""
    precision = Int4(32, symmetric=True)
    student = load_model(trained(precision, precision))
    for key, weight in weights(student).items():
        if weight.ndim == 2:
            again = quantize(weight, precision, positive_scales=positive)
            found = blocks(again.dequantize(weight.shape[1]), precision.group_size)
            alike = (found == blocks(weight, precision.group_size)).all(-1)
            assert alike.float().mean() >= 0.999, key


@pytest.mark.slow
def test_export_with_a_head_of_eight_bits(trained: Trained, tmp_path: Path) -> None:
    """The head that QAD trains by default needs to be named to export."""
    source = trained(Int4(32), Int8(32))
    manifest = export_model(
        source,
        tmp_path / "bundle",
        precision="int4",
        group_size=32,
        exceptions={"lm_head": "int8", "embedding": "int8"},
        method="rtn",
        kv="fp32",
        gate="off",
    )
    alike = exported_alike(
        tmp_path / "bundle", Weights(open_checkpoint(source)), manifest.precision
    )
    assert manifest.precision["lm_head"] == manifest.precision["embedding"] == Int8(32)
    assert alike["lm_head"].all()
    assert alike["embedding"].all()
    assert all(one.float().mean() >= 0.99 for one in alike.values())


def test_levels_survive_the_int8_cache(trained: Trained, tmp_path: Path) -> None:
    """It folds a factor a head into values and what reads them: other scales, the same levels."""
    precision = Int4(16)
    kv: KvType = "int8"
    source = trained(precision, precision)
    manifest = export_model(
        source, tmp_path / "b", precision="int4", group_size=16, method="rtn", kv=kv, gate="off"
    )
    assert manifest.kv == kv
    student = Weights(open_checkpoint(source))
    for group in student.groups():
        matrix = student.matrix(group)
        ours = blocks(stored(tmp_path / "b", group, matrix.shape, precision), 16)
        theirs = blocks(matrix, 16)
        factor = (ours * theirs).sum(-1) / theirs.square().sum(-1)
        error = (ours - factor[..., None] * theirs).abs().amax(-1) / theirs.abs().amax(-1)
        assert (error < 1e-3).float().mean() >= 0.99, group
