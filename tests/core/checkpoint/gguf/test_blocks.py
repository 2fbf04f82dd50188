"""Block formats as grids: the numbers that the gguf package dequantizes, exactly."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from edgelm.checkpoint.gguf.blocks import GRIDS, level_bits, read_levels
from edgelm.checkpoint.quantized.integers import integer_grid
from edgelm.checkpoint.source import open_checkpoint
from edgelm.devices.kernels import KERNELS
from edgelm.export.precision.source import assign_source
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.quantize.weights import Weights
from edgelm.quantize.precision import Fp32, Int4, Int8
from tests.checkpoints.gguf_files import write_gguf
from tests.checkpoints.models import tiny_model
from tests.conftest import TinyFactory

KINDS = gguf.GGMLQuantizationType


@pytest.mark.parametrize("number", GRIDS, ids=lambda number: KINDS(number).name)
def test_levels_are_those_that_gguf_dequantizes(number: int) -> None:
    block, size = gguf.constants.GGML_QUANT_SIZES[KINDS(number)]
    rows = np.random.default_rng(0).integers(0, 256, (6, 3 * size), dtype=np.uint8)
    place = 208 if KINDS(number) is KINDS.Q6_K else 0
    for at in range(place, rows.shape[1], size):  # scales that are numbers, of either sign
        rows[:, at : at + 2] = np.linspace(-2, 2, 6, dtype="<f2")[:, None].view(np.uint8)
    expected = gguf.quants.dequantize(rows, KINDS(number))
    levels, scales = read_levels(rows, number)
    precision = GRIDS[number]
    grid = integer_grid(
        torch.from_numpy(levels),
        torch.from_numpy(scales),
        None,
        bits=4 if isinstance(precision, Int4) else 8,
        group_size=precision.group_size,
    )
    assert levels.shape == (6, 3 * block)
    assert np.array_equal(grid.dequantize().numpy(), expected)


@pytest.mark.parametrize(("name", "bits"), [("Q4_0", 4), ("Q4_1", 4), ("Q4_K", 4), ("Q5_0", 8)])
def test_bits(name: str, bits: int) -> None:
    assert level_bits(getattr(KINDS, name).value) == bits


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q5_0"])
@pytest.mark.parametrize("model", ["llama", "qwen3"])
def test_every_matrix_of_a_file(tmp_path: Path, model: str, kind: str) -> None:
    path = write_gguf(tiny_model(model, intermediate_size=96), tmp_path / "model.gguf", kind)
    checkpoint = open_checkpoint(path)
    assert checkpoint.default_precision == "source"
    found = assign_source(checkpoint, KERNELS["onnxruntime"], ["int4", "int8"], Fp32())
    assert found.converted == ()
    weights = Weights(checkpoint)
    quantizer = Quantizer(weights)
    for group, precision in found.assignment.items():
        assert precision == (Int4(32, symmetric=True) if kind == "Q4_0" else Int8(32))
        assert isinstance(precision, Int4 | Int8)
        stored = quantizer.quantize(group, lambda: pytest.fail("reads weights"), precision)
        assert torch.equal(stored.dequantize(weights.columns(group)), weights.matrix(group))
        assert stored.scales.dtype == torch.float16


def test_fractional_minima_are_not_kept(tiny: TinyFactory, tmp_path: Path) -> None:
    path = write_gguf(tiny_model("llama"), tmp_path / "model.gguf", "Q4_1")
    checkpoint = open_checkpoint(path)
    assert checkpoint.default_precision == "auto"
    assert not checkpoint.keeps_levels
    found = assign_source(checkpoint, KERNELS["onnxruntime"], ["int4", "int8"], Fp32())
    assert set(found.converted) == set(found.assignment)
    assert set(found.assignment.values()) == {Int8(32)}
    # Eight bits lose a hundredth of what four bits have lost.
    weights, group = Weights(checkpoint), "layers.0.mlp.gate_up"
    matrix = weights.matrix(group)
    stored = Quantizer(weights).quantize(group, lambda: matrix, Int8(32))
    assert (stored.dequantize(64) - matrix).norm() < 0.01 * matrix.norm()
