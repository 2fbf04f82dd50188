"""Experts that a file stores one by one, or as one stack; quantized ones keep their levels."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edgelm.checkpoint.source import open_checkpoint
from edgelm.errors import BadCheckpoint
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.quantize.weights import Weights
from edgelm.quantize.grids import IntegerGrid
from edgelm.quantize.precision import Int4
from tests.checkpoints.quantized_folders import AWQ, Grid, awq_parts, random_grid
from tests.checkpoints.weight_folders import Tensors, edit_config, store, tensors_of
from tests.conftest import TinyFactory

SINGLE = re.compile(r"\.experts\.\d+\.")
UP = "model.layers.2.mlp.experts.4.up_proj.weight"


@pytest.fixture
def folder(tiny: TinyFactory, tmp_path: Path) -> Path:
    return shutil.copytree(tiny("qwen3-moe").folder, tmp_path / "model")


@pytest.mark.parametrize(
    "name", ["qwen3-moe", "olmoe", "lfm2-moe", "qwen3.5-moe", "granite-moe", "granite-hybrid-moe"]
)
def test_single_matrices_are_what_transformers_stacks(name: str, tiny: TinyFactory) -> None:
    source = tiny(name)
    assert source.checkpoint.shapes.keys() != tensors_of(source.folder).keys()
    state = source.hf.state_dict()
    stacks = [one for one in source.checkpoint.shapes if ".experts." in one]
    assert stacks
    for one in stacks:
        assert torch.equal(source.checkpoint.tensor(one), state[one])


def test_a_file_with_stacks(folder: Path, tiny: TinyFactory) -> None:
    """As transformers 5 writes with `save_original_format=False`."""
    source = tiny("qwen3-moe")
    tensors = {name: one for name, one in tensors_of(folder).items() if not SINGLE.search(name)}
    stacks = {name for name in source.checkpoint.shapes if ".experts." in name}
    store(folder, tensors | {name: source.checkpoint.tensor(name) for name in stacks})
    opened = open_checkpoint(folder)
    assert all(torch.equal(opened.tensor(one), source.checkpoint.tensor(one)) for one in stacks)


def test_a_base_model(folder: Path, tiny: TinyFactory) -> None:
    """Without the prefix `model.`."""
    store(folder, {name.removeprefix("model."): one for name, one in tensors_of(folder).items()})
    name = "model.layers.2.mlp.experts.down_proj"
    assert torch.equal(
        open_checkpoint(folder).tensor(name), tiny("qwen3-moe").checkpoint.tensor(name)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(UP), r"lacks '.*experts\.4\.up_proj\.weight', one of 6"),
        (
            lambda tensors: tensors.update({UP: tensors[UP][:, :5]}),
            r"experts\.4\.up_proj\.weight is F32 \[32, 5\], expected a matrix like",
        ),
        (
            lambda tensors: tensors.update({UP: tensors[UP].half()}),
            r"is F16 \[32, 64\], expected .*F32 \[32, 64\]",
        ),
        (
            lambda tensors: tensors.update({UP.replace(".4.", ".6."): tensors[UP]}),
            r"1 tensors that do not fit config\.json: '.*experts\.6",
        ),
    ],
)
def test_experts_that_do_not_fit(
    folder: Path, change: Callable[[Tensors], object], message: str
) -> None:
    tensors = tensors_of(folder)
    change(tensors)
    store(folder, tensors)
    with pytest.raises(BadCheckpoint, match=message):
        open_checkpoint(folder)


def quantize(folder: Path, *, leave: str = "") -> dict[str, Grid]:
    """Store every expert's matrices as AWQ does."""
    grids: dict[str, Grid] = {}
    tensors: Tensors = {}
    for name, tensor in tensors_of(folder).items():
        if not SINGLE.search(name) or name == leave:
            tensors[name] = tensor
            continue
        module = name.removesuffix(".weight")
        grids[module] = random_grid(tensor, seed=len(grids))
        parts = awq_parts(grids[module])
        tensors |= {f"{module}.{part}": one.contiguous() for part, one in parts.items()}
    store(folder, tensors)
    edit_config(folder, quantization_config=AWQ)
    return grids


def test_quantized_experts(folder: Path) -> None:
    """Levels of all experts, bit for bit, in the order in which they are executed."""
    grids = quantize(folder)
    checkpoint = open_checkpoint(folder)
    name = "model.layers.2.mlp.experts.gate_up_proj"
    stack = checkpoint.tensor(name)
    for expert, rows in enumerate(stack):
        prefix = f"model.layers.2.mlp.experts.{expert}"
        halves = [grids[f"{prefix}.{part}"].matrix for part in ("gate_proj", "up_proj")]
        assert torch.equal(rows, torch.cat(halves))
    assert isinstance(checkpoint.packed[name].read(), IntegerGrid)
    assert checkpoint.packed[name].precision == Int4(32)
    weights = Weights(checkpoint)
    group = "layers.2.mlp.experts.gate_up"
    quantizer = Quantizer(weights)
    stored = quantizer.quantize(group, lambda: weights.matrix(group), Int4(32))
    assert group in quantizer.taken_over
    assert torch.equal(stored.dequantize(64), weights.matrix(group))


def test_some_experts_of_a_layer_quantized(folder: Path) -> None:
    quantize(folder, leave=UP)
    with pytest.raises(BadCheckpoint, match="11 of 12 experts' matrices are quantized"):
        open_checkpoint(folder)
