"""The levels of a quantized source in the form of kernels: the same numbers, bit for bit."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from edgelm.checkpoint.source import Checkpoint, open_checkpoint
from edgelm.devices.kernels import KERNELS
from edgelm.export.precision.legalize import legalize
from edgelm.export.precision.source import assign_source
from edgelm.export.quantize.kv_scales import KvScaling
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.quantize.source_levels import is_held
from edgelm.export.quantize.weights import Weights
from edgelm.quantize.precision import Fp8, Fp32, Int4, Int8, Nvfp4
from tests.checkpoints.quantized_folders import (
    AWQ,
    GPTQ,
    awq_parts,
    compressed,
    gptq_parts,
    modelopt_int4_parts,
    packed_parts,
    random_fp4,
    random_grid,
    replace_matrices,
)
from tests.conftest import TinyFactory

NARROW = ("fp32", "fp16", "bf16", "int8", "int4", "fp8", "nvfp4")
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}


def quantized(
    tiny: TinyFactory, folder: Path, model: str, parts: Any, config: Any, **grid: Any
) -> Checkpoint:
    shutil.copytree(tiny(model).folder, folder)
    replace_matrices(folder, lambda _, weight: parts(random_grid(weight, **grid)), config)
    return open_checkpoint(folder)


CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "awq": (awq_parts, AWQ, {}),
    "gptq": (gptq_parts, GPTQ, {"symmetric": True}),
    "gptq act-order": (gptq_parts, GPTQ | {"desc_act": True}, {"act_order": True}),
    "gptq 8 bits": (gptq_parts, GPTQ | {"bits": 8}, {"bits": 8}),
    "compressed bf16": (
        lambda grid: packed_parts(grid, symmetric=True),
        compressed(**INT4),
        {"symmetric": True, "dtype": torch.bfloat16},
    ),
    "factors": (
        lambda grid: (
            modelopt_int4_parts(grid)
            | {"pre_quant_scale": torch.linspace(0.5, 2, grid.levels.shape[1])}
        ),
        {"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"},
        {"symmetric": True},
    ),
}


@pytest.mark.parametrize("model", ["llama", "glm4", "qwen3"])
@pytest.mark.parametrize("case", CASES)
def test_every_matrix_on_onnx_runtime(
    tiny: TinyFactory, tmp_path: Path, case: str, model: str
) -> None:
    parts, config, grid = CASES[case]
    checkpoint = quantized(tiny, tmp_path / "model", model, parts, config, **grid)
    kernels = KERNELS["onnxruntime"]
    weights = Weights(checkpoint)
    found = assign_source(checkpoint, kernels, NARROW, Fp32())
    # Different orders of the parts of a group cannot be followed at once.
    differ = case == "gptq act-order"
    assert all(("qkv" in g or "gate_up" in g) and differ for g in found.converted)
    columns = {group: weights.columns(group) for group in weights.groups()}
    assignment = legalize(found.assignment, columns, kernels)
    quantizer = Quantizer(weights)
    for group in weights.groups():
        precision = assignment[group]
        if group in ("embedding", "lm_head"):
            assert precision == Fp32()
            continue
        assert is_held(weights, group, precision) == (group not in found.converted)
        if group in found.converted:
            continue
        assert isinstance(precision, Int4 | Int8)
        stored = quantizer.quantize(group, lambda: pytest.fail("reads weights"), precision)
        assert (stored.zero_points is None) == precision.symmetric
        executed, inputs = _executed(checkpoint, weights, group), weights.inputs(group)
        values = stored.dequantize(columns[group])
        if inputs is not None and inputs.factors is not None:
            values = values * inputs.factors  # what the graph multiplies the inputs by
            torch.testing.assert_close(values, executed, rtol=1e-6, atol=0)
        else:
            assert torch.equal(values, executed), group
    assert quantizer.taken_over == set(assignment) - {"embedding", "lm_head", *found.converted}


def _executed(checkpoint: Checkpoint, weights: Weights, group: str) -> torch.Tensor:
    """A group's dequantized weights in the order in which they are executed."""
    matrix = torch.cat([checkpoint.tensor(name) for name in weights.tensor_names(group)])
    if (order := weights.row_order(group)) is not None:
        matrix = matrix[order]
    inputs = weights.inputs(group)
    return matrix if inputs is None or inputs.order is None else matrix[:, inputs.order]


def test_projections_that_share_an_order_follow_it(tiny: TinyFactory, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny("llama").folder, folder)
    orders: dict[int, torch.Tensor] = {}

    def parts(_: str, weight: torch.Tensor) -> Any:
        grid = random_grid(weight, act_order=True)
        order = orders.setdefault(weight.shape[1], grid.order)
        return gptq_parts(type(grid)(4, grid.levels, grid.scales, grid.zeros, order))

    replace_matrices(folder, parts, GPTQ | {"desc_act": True})
    checkpoint = open_checkpoint(folder)
    assert assign_source(checkpoint, KERNELS["onnxruntime"], NARROW, Fp32()).converted == ()
    assert checkpoint.default_precision == "source"


@pytest.mark.parametrize("value_factors", ["head", "layer"])
def test_scaling_for_an_eight_bit_cache_moves_exponents_only(
    tiny: TinyFactory, tmp_path: Path, value_factors: Any
) -> None:
    checkpoint = quantized(tiny, tmp_path / "model", "llama", awq_parts, AWQ)
    spec = checkpoint.spec
    peaks = [
        (torch.rand(2, 16) + 0.1, torch.rand(2, 16) + 0.1) for _ in range(spec.num_hidden_layers)
    ]
    scaling = KvScaling.from_calibration(spec, peaks, values=value_factors, powers_of_two=True)
    for layer, (keys, values) in zip(scaling.layers, peaks, strict=True):
        assert torch.equal(layer.key.log2(), layer.key.log2().round())
        assert float((layer.value * values).max()) <= layer.value_range * (1 + 1e-6)
        assert float((layer.key * keys).max()) <= layer.key_range * 2.001
    weights = Weights(checkpoint, scaling)
    quantizer = Quantizer(weights)
    for group in ("layers.0.attention.qkv", "layers.1.attention.o"):
        stored = quantizer.quantize(group, lambda: pytest.fail("reads weights"), Int4(16))
        assert torch.equal(stored.dequantize(64), weights.matrix(group)), group


def test_tensorrt_has_symmetric_levels_in_its_own_groups(tiny: TinyFactory, tmp_path: Path) -> None:
    kernels = KERNELS["tensorrt-rtx"]
    config = GPTQ | {"group_size": 32}
    checkpoint = quantized(tiny, tmp_path / "model", "llama", gptq_parts, config, symmetric=True)
    found = assign_source(checkpoint, kernels, NARROW, Fp32())
    assert found.converted == ()
    weights = Weights(checkpoint)
    quantizer = Quantizer(weights, positive_scales=True)
    group = "layers.2.mlp.gate_up"
    assert found.assignment[group] == Int4(32, symmetric=True)
    stored = quantizer.quantize(group, lambda: pytest.fail("reads weights"), Int4(32, True))
    assert torch.equal(stored.dequantize(64), weights.matrix(group))


def test_zero_points_are_converted_for_tensorrt(tiny: TinyFactory, tmp_path: Path) -> None:
    checkpoint = quantized(tiny, tmp_path / "model", "llama", awq_parts, AWQ)
    found = assign_source(checkpoint, KERNELS["tensorrt-rtx"], NARROW, Fp32())
    assert "layers.0.mlp.down" in found.converted
    assert found.assignment["layers.0.mlp.down"] == Int4(32, symmetric=True)


def test_nvfp4(tiny: TinyFactory, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny("llama").folder, folder)

    def parts(_: str, weight: torch.Tensor) -> Any:
        fp4 = random_fp4(weight)
        return {"weight": fp4.packed, "weight_scale": fp4.scales, "weight_scale_2": fp4.scale}

    replace_matrices(folder, parts, {"quant_method": "modelopt", "quant_algo": "NVFP4"})
    checkpoint = open_checkpoint(folder)
    weights = Weights(checkpoint)
    quantizer = Quantizer(weights)
    group = "layers.0.attention.qkv"
    assert assign_source(checkpoint, KERNELS["onnxruntime"], NARROW, Fp32()).assignment[
        group
    ] == Int8(16)
    assert (
        assign_source(checkpoint, KERNELS["tensorrt"], NARROW, Fp32()).assignment[group] == Nvfp4()
    )
    matrix = weights.matrix(group)
    blocks = quantizer.nvfp4(group, lambda: pytest.fail("reads weights"))
    assert torch.equal(blocks.dequantize(), matrix)
    integers = quantizer.quantize(group, lambda: pytest.fail("reads weights"), Int8(16))
    assert torch.equal(integers.dequantize(64), matrix)
    assert quantizer.taken_over == {group}


def test_fp8(tiny: TinyFactory, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny("llama").folder, folder)

    def parts(_: str, weight: torch.Tensor) -> Any:
        values = (weight * 64).to(torch.float8_e4m3fn)
        scale = torch.tensor(0.02 if weight.shape[0] == 64 else 0.01)
        return {"weight": values, "weight_scale": scale, "input_scale": torch.tensor(0.125)}

    replace_matrices(folder, parts, {"quant_method": "modelopt", "quant_algo": "FP8"})
    checkpoint = open_checkpoint(folder)
    weights = Weights(checkpoint)
    group = "layers.0.attention.qkv"
    assert assign_source(checkpoint, KERNELS["tensorrt"], NARROW, Fp32()).assignment[group] == Fp8()
    quantizer = Quantizer(weights)
    values, scales = quantizer.fp8(group, lambda: pytest.fail("reads weights"))
    assert torch.equal(values.float() * scales[:, None], weights.matrix(group))
    assert quantizer.input_peak(group) == 0.125 * 448
    # ONNX Runtime has no E4M3: eight bits in groups instead.
    found = assign_source(checkpoint, KERNELS["onnxruntime"], NARROW, Fp32())
    assert group in found.converted
    assert found.assignment[group] == Int8(32)
