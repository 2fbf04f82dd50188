"""Training through the quantizer starts from what export would have made of the weights."""

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from edgelm.compress.evaluation.held_out import held_out_divergence
from edgelm.compress.model import spec_of
from edgelm.compress.qad.fake_quantizer import FakeQuantizer, Grid
from edgelm.compress.qad.start import fold_scales, prepare_for_quantization, read_start, write_start
from edgelm.errors import BadInput, DoesNotFit
from edgelm.quantize.awq import Smoothing
from edgelm.quantize.gptq import gptq
from edgelm.quantize.precision import Int4, Int8
from edgelm.quantize.rtn import quantize
from edgelm.spec.groups import groups, tensor_names
from tests.checkpoints.models import REPRESENTATIVE, TINY, tiny_model
from tests.compress.training import SETTINGS, same, teacher_and_student, train, weights
from tests.slow import slow_but

TOKENS = torch.randint(0, 128, (8, 16), generator=torch.Generator().manual_seed(1))
QAD = (Int4(16), Int8(32))


def uneven(name: str) -> Any:
    """A tiny model, calm, whose channels differ in strength and depend on each other."""
    model = tiny_model(name)
    generator = torch.Generator().manual_seed(2)
    offset = 1.0 if spec_of(model).norm_plus_one else 0.0
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "layernorm" in key:
                parameter += torch.randn(len(parameter), generator=generator).exp() - offset
            elif parameter.ndim == 2:
                parameter *= 0.4
    return model


@pytest.mark.parametrize("name", slow_but(TINY, REPRESENTATIVE))
def test_evened_out_models_compute_the_same(name: str) -> None:
    model = uneven(name)
    spec = spec_of(model)
    names = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(3)
    energy = {
        group: torch.randn(names[tensor_names(spec, group)[0]].shape[1], generator=generator)
        .mul(3)
        .exp()
        for group in groups(spec)
    }
    before = model(TOKENS).logits.detach()
    with torch.no_grad():
        fold_scales(Smoothing.from_mean_squares(spec, energy), model, spec)
    scale = float(before.abs().max())
    torch.testing.assert_close(model(TOKENS).logits.detach(), before, rtol=0, atol=2e-4 * scale)


def test_rounds_to_the_levels_of_gptq(tmp_path: Path) -> None:
    model, plain = uneven("olmo2"), uneven("olmo2")  # whose norms do not let channels be evened
    seen: list[torch.Tensor] = []
    name = "model.layers.0.self_attn.q_proj"
    plain.get_submodule(name).register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    plain(TOKENS)
    inputs = seen[0].detach().flatten(0, 1)
    weight = plain.get_parameter(f"{name}.weight").detach()
    expected = gptq(weight, Int4(16), inputs.T @ inputs / len(inputs))
    grids = prepare_for_quantization(model, TOKENS.split(3), *QAD, tmp_path)
    with FakeQuantizer(model, grids).quantized():
        rounded = model.get_parameter(f"{name}.weight").detach().clone()
    alike = (rounded == expected.dequantize(weight.shape[1])).float().mean()
    assert alike > 0.999  # sums over the text in another order
    master = model.get_parameter(f"{name}.weight").detach()
    assert not torch.equal(master, weight)
    assert (master - rounded).abs().mean() > 0.1 * (weight - rounded).abs().mean()


@pytest.mark.parametrize("name", ["llama", "llama-untied"], ids=["tied", "untied"])
def test_head_and_embedding_have_a_precision_of_their_own(tmp_path: Path, name: str) -> None:
    model = uneven(name)
    table = model.model.embed_tokens.weight.detach().clone()
    grids = prepare_for_quantization(model, [TOKENS], *QAD, tmp_path)
    tables = {key for key in grids if key in ("model.embed_tokens.weight", "lm_head.weight")}
    assert len(tables) == (1 if name == "llama" else 2)
    matrices = {key for key, parameter in model.named_parameters() if parameter.ndim == 2}
    assert grids.keys() == matrices
    assert {(grid.bits, grid.group_size) for key, grid in grids.items() if key in tables} == {
        (8, 32)
    }
    assert {grid.bits for key, grid in grids.items() if key not in tables} == {4}
    assert torch.equal(model.model.embed_tokens.weight, table), "its masters are what it was"
    if name == "llama-untied":
        plain = Grid.from_quantized(quantize(table, Int8(32)))
        assert torch.equal(grids["model.embed_tokens.weight"].scales, plain.scales)


@pytest.mark.parametrize("name", ["llama", "phi3", "gemma2"])
def test_nearer_than_nearest_levels(tmp_path: Path, name: str) -> None:
    teacher, ours, theirs = (uneven(name) for _ in range(3))
    text = torch.randint(0, 128, (96, 16), generator=torch.Generator().manual_seed(4))
    grids = prepare_for_quantization(ours, text[:64].split(16), *QAD, tmp_path)
    FakeQuantizer(ours, grids).finish()
    plain = {
        key: Grid.from_quantized(
            quantize(one.detach(), QAD[1] if key in tables(teacher) else QAD[0])
        )
        for key, one in theirs.named_parameters()
        if one.ndim == 2
    }
    FakeQuantizer(theirs, plain).finish()
    held_out = text[64:]
    nearest = held_out_divergence(theirs, teacher, held_out)
    assert held_out_divergence(ours, teacher, held_out) < 0.8 * nearest


def tables(model: Any) -> list[str]:
    return [name for name, _ in model.named_parameters() if "embed" in name or "lm_head" in name]


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_start_is_read_as_it_was_written(tmp_path: Path, symmetric: bool) -> None:
    precision = Int4(32, symmetric=symmetric)
    model, other = uneven("llama-untied"), uneven("llama-untied")
    grids = prepare_for_quantization(model, [TOKENS], precision, Int8(64), tmp_path)
    write_start(tmp_path / "start", model, grids, "this")
    read = read_start(tmp_path / "start", other, precision, Int8(64), "this")
    assert same(weights(other), weights(model))
    assert read.keys() == grids.keys()
    for key, grid in grids.items():
        assert (read[key].bits, read[key].group_size) == (grid.bits, grid.group_size)
        assert torch.equal(read[key].scales, grid.scales)
        assert (read[key].zero_points is None) == (grid.zero_points is None)
        if grid.zero_points is not None:
            assert torch.equal(read[key].zero_points, grid.zero_points)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("precision", "scale"),
    [((Int4(32), Int8(32)), 1.0), ((Int4(16), Int4(16)), 1.0), (QAD, 1.01)],
    ids=["group size", "head", "weights"],
)
def test_a_start_of_another_run(
    tmp_path: Path, precision: tuple[Int4, Int8 | Int4], scale: float
) -> None:
    teacher, student = teacher_and_student()
    train(student, teacher, tmp_path, SETTINGS, precision=QAD)
    teacher, student = teacher_and_student()
    with torch.no_grad():
        student.model.embed_tokens.weight.mul_(scale)
    with pytest.raises(BadInput, match=r"belongs to another run \(int4 g16 zp, head int8 g32"):
        train(student, teacher, tmp_path, SETTINGS, precision=precision)


def test_no_room_for_second_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DoesNotFit, match=r"second moments need .* are free"):
        prepare_for_quantization(uneven("llama"), [TOKENS], *QAD, tmp_path)


def test_later_starts_of_a_run_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = teacher_and_student()
    whole = train(student, teacher, tmp_path / "whole", SETTINGS, precision=QAD)
    teacher, student = teacher_and_student()
    stopped = train(
        student,
        teacher,
        tmp_path / "parts",
        msgspec.structs.replace(SETTINGS, stop_after=4 * 64),
        precision=QAD,
    )
    assert len(stopped) == 4

    def again(*_: Any) -> None:
        raise AssertionError("the start was made a second time")

    monkeypatch.setattr("edgelm.compress.distillation.train.prepare_for_quantization", again)
    teacher, student = teacher_and_student()
    rest = train(student, teacher, tmp_path / "parts", SETTINGS, precision=QAD)
    assert [step.loss for step in rest] == [step.loss for step in whole[4:]]


def test_disk_full_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    teacher, student = teacher_and_student()
    with monkeypatch.context() as patch:
        patch.setattr("edgelm.compress.distillation.train.write_start", full)
        with pytest.raises(DoesNotFit, match=r"no room for .* there is no checkpoint"):
            train(student, teacher, tmp_path, SETTINGS, precision=QAD)
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]
    # What a kill leaves of it is removed.
    (tmp_path / "start.safetensors.partial").write_bytes(b"half")
    train(student, teacher, tmp_path, SETTINGS, precision=QAD)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["settings.json", "start.safetensors", "step-00000008"]
