"""Quantization-aware distillation of mixtures: grids of stacked experts, and what export finds."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from edgelm.checkpoint.source import open_checkpoint
from edgelm.compress.data.packing import PackedTokens
from edgelm.compress.distillation.train import distill
from edgelm.compress.model import load_model, save_model, spec_of
from edgelm.compress.qad.fake_quantizer import FakeQuantizer, Grid
from edgelm.compress.qad.start import prepare_for_quantization
from edgelm.export.pipeline import export_model
from edgelm.export.quantize.calibrate import calibrate
from edgelm.export.quantize.input_stats import InputStats
from edgelm.export.quantize.methods import METHODS
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.quantize.weights import Weights
from edgelm.export.source.reference import Reference
from edgelm.quantize.precision import Int4, Int8
from edgelm.quantize.rtn import quantize
from edgelm.spec.groups import experts_in, groups, tensor_names
from edgelm.spec.tensor_shapes import stacked_by_input
from tests.checkpoints.models import MIXTURES
from tests.checkpoints.tiny_chat import VOCAB, save_tiny_chat
from tests.compress.qad.exported import exported_alike
from tests.compress.tokenizers import tiny_fast_tokenizer
from tests.compress.training import SETTINGS, same, weights
from tests.slow import slow_but

# Matrices of one expert by input (gpt-oss), by output, and beside a shared expert.
KINDS = ("qwen3-moe", "gpt-oss", "qwen3.5-moe")
TOKENS = torch.randint(4, VOCAB, (8, 16), generator=torch.Generator().manual_seed(1))


def stacks(model: Any) -> dict[str, str]:
    """Names of the stacked experts' tensors, by group."""
    spec = spec_of(model)
    found = [group for group in groups(spec) if experts_in(spec, group)]
    return {group: tensor_names(spec, group)[0] for group in found}


def prepared(folder: Path, name: str, precision: Int4 | Int8) -> tuple[Any, dict[str, Grid]]:
    model = load_model(save_tiny_chat(folder / "model", name))
    scratch = folder / "scratch"
    scratch.mkdir()
    return model, prepare_for_quantization(model, [TOKENS], precision, Int8(32), scratch)


@pytest.mark.parametrize("name", slow_but(MIXTURES, KINDS))
def test_the_start_is_what_export_rounds_experts_to(tmp_path: Path, name: str) -> None:
    model, grids = prepared(tmp_path, name, Int4(16))
    checkpoint = open_checkpoint(tmp_path / "model")
    source = Weights(checkpoint)
    observed = calibrate(Reference(checkpoint), TOKENS)
    stats = InputStats(source, observed.mean_square, {})
    quantizer = Quantizer(source, METHODS["auto"], stats=stats)
    with FakeQuantizer(model, grids).quantized():
        inside = weights(model)
    for group, key in stacks(model).items():
        ours = inside[key]
        [theirs] = quantizer.dequantized(group, Int4(16)).values()
        close = (ours - theirs).abs() <= 1e-3 * theirs.abs()
        # Sums over the text are in another order. A multiplier that export folds into the rows
        # leaves scales of another last bit in fp16, and some other levels.
        folded = checkpoint.spec.residual_multiplier != 1 and group.endswith("down")
        assert close.float().mean() > (0.95 if folded else 0.999), group
        assert not torch.equal(ours, model.get_parameter(key))


@pytest.mark.parametrize("precision", [Int4(16), Int4(32, symmetric=True), Int8(16)], ids=str)
@pytest.mark.parametrize("name", ["qwen3-moe", "gpt-oss"])
def test_each_expert_has_a_grid_of_its_own(
    tmp_path: Path, name: str, precision: Int4 | Int8
) -> None:
    model, grids = prepared(tmp_path, name, precision)
    quantizer = FakeQuantizer(model, grids)
    by_input = stacked_by_input(spec_of(model).family)
    masters = weights(model)
    with quantizer.quantized():
        inside = weights(model)
    assert same(weights(model), masters)
    quantizer.finish()
    for key in stacks(model).values():
        finished = model.get_parameter(key).detach()
        assert torch.equal(finished, inside[key])
        for expert, scales in zip(inside[key], grids[key].scales, strict=True):
            matrix = expert.T if by_input else expert
            values = matrix.unflatten(1, (-1, precision.group_size)) / scales.float()[..., None]
            torch.testing.assert_close(values, values.round(), rtol=0, atol=1e-3)
            assert torch.equal(quantize(matrix, precision).dequantize(matrix.shape[1]), matrix)


@pytest.fixture(scope="module", params=slow_but(KINDS, ("qwen3-moe", "gpt-oss")))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student after quantization-aware distillation, and the losses of its steps."""
    folder = tmp_path_factory.mktemp("qad")
    source = save_tiny_chat(folder / "teacher", request.param)
    train(source, folder / "run", folder / "student")
    return folder


def train(source: Path, run: Path, output: Path | None, **over: Any) -> list[float]:
    """Train a student of a model against it, in 16 steps; returns their losses."""
    teacher, student = load_model(source), load_model(source)
    tokens = np.random.default_rng(0).integers(4, VOCAB, (4, 16)).astype(np.int32)
    settings = msgspec.structs.replace(SETTINGS, tokens=16 * 64, learning_rate=1e-3, **over)
    steps = distill(
        student, teacher, PackedTokens(tokens), settings, run, precision=(Int4(16), Int8(16))
    )
    losses = [step.loss for step in steps]
    if output is not None:
        save_model(student, tiny_fast_tokenizer(), output, torch.float32)
        (output / "losses.json").write_bytes(msgspec.json.encode(losses))
    return losses


def test_training_lowers_the_loss(trained: Path) -> None:
    losses = msgspec.json.decode((trained / "student" / "losses.json").read_bytes())
    assert losses[-1] < 0.8 * losses[0]


def test_a_stopped_run_resumes_to_the_same_weights(trained: Path, tmp_path: Path) -> None:
    source = trained / "teacher"
    first = train(source, tmp_path / "run", None, stop_after=6 * 64)
    rest = train(source, tmp_path / "run", tmp_path / "student")
    whole = msgspec.json.decode((trained / "student" / "losses.json").read_bytes())
    assert first + rest == whole
    ours, theirs = (load_model(one / "student") for one in (tmp_path, trained))
    assert same(weights(ours), weights(theirs))


def test_export_finds_the_same_blocks(trained: Path, tmp_path: Path) -> None:
    """Levels, scales and zero points of the bundle's experts give the student's weights."""
    manifest = export_model(
        trained / "student",
        tmp_path / "bundle",
        precision="int4",
        group_size=16,
        exceptions={"lm_head": "int8", "embedding": "int8"},
        method="rtn",
        kv="fp32",
    )
    assert manifest.gate is not None
    assert manifest.gate.passed
    student = Weights(open_checkpoint(trained / "student"))
    alike = exported_alike(tmp_path / "bundle", student, manifest.precision)
    experts = [group for group in alike if student.experts(group)]
    assert experts
    assert {manifest.precision[group] for group in experts} == {Int4(16)}
    for group, same_blocks in alike.items():
        assert same_blocks.float().mean() >= 0.99, group
