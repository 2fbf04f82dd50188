"""Every format, packed by hand: the matrices that it defines, and its levels, exactly."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgelm.checkpoint.source import Checkpoint, open_checkpoint
from edgelm.quantize.grids import Fp8Matrix, IntegerGrid, Nvfp4Blocks
from edgelm.quantize.precision import Fp8, Int4, Int8, Nvfp4
from tests.checkpoints.quantized_folders import (
    AWQ,
    GPTQ,
    Grid,
    awq_parts,
    compressed,
    gptq_parts,
    modelopt_int4_parts,
    packed_parts,
    random_fp4,
    random_grid,
    replace_matrices,
    write_json,
)
from tests.checkpoints.weight_folders import Tensors
from tests.conftest import TinyFactory

NAME = "model.layers.1.mlp.down_proj.weight"
Parts = Callable[[Grid], Tensors]


@pytest.fixture
def folder(tiny: TinyFactory, tmp_path: Path) -> Path:
    return shutil.copytree(tiny("llama").folder, tmp_path / "model")


def quantize(
    folder: Path, parts: Parts, config: dict[str, Any] | None, **grid: Any
) -> dict[str, Grid]:
    """Store every matrix of the layers as a random grid."""
    grids = {}

    def stored(module: str, weight: torch.Tensor) -> Tensors:
        grids[f"{module}.weight"] = made = random_grid(weight, **grid)
        return parts(made)

    replace_matrices(folder, stored, config)
    return grids


def assert_reads(folder: Path, grids: dict[str, Grid]) -> Checkpoint:
    """That a folder is read as the grids that it was made of."""
    checkpoint = open_checkpoint(folder)
    assert checkpoint.packed.keys() == grids.keys()
    for name, grid in grids.items():
        assert torch.equal(checkpoint.tensor(name), grid.matrix), name
        found = checkpoint.packed[name].read()
        assert isinstance(found, IntegerGrid)
        shift = 2 ** (found.bits - 1) - 2 ** (grid.bits - 1)
        assert torch.equal(found.levels, (grid.levels + shift).to(torch.uint8))
        assert torch.equal(found.scales, grid.scales.float())
    return checkpoint


def gptq2(grid: Grid) -> Tensors:
    return gptq_parts(grid, version=2)


def asymmetric(grid: Grid) -> Tensors:
    return packed_parts(grid, symmetric=False)


def symmetric(grid: Grid) -> Tensors:
    return packed_parts(grid, symmetric=True)


def ordered(grid: Grid) -> Tensors:
    return packed_parts(grid, symmetric=True, act_order=True)


V2 = {"checkpoint_format": "gptq_v2"}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
INT8 = {"num_bits": 8, "type": "int", "strategy": "group", "group_size": 32}
CASES: dict[str, tuple[Parts, dict[str, Any], dict[str, Any], Any]] = {
    "awq": (awq_parts, AWQ, {}, Int4(32)),
    "awq whose zeros are all eight": (awq_parts, AWQ, {"symmetric": True}, Int4(32, True)),
    "gptq": (gptq_parts, GPTQ, {"symmetric": True}, Int4(32, True)),
    "gptq with zeros": (gptq_parts, GPTQ, {}, Int4(32)),
    "gptq v2": (gptq2, GPTQ | V2, {}, Int4(32)),
    "gptq act-order": (gptq_parts, GPTQ | {"desc_act": True}, {"act_order": True}, Int4(32)),
    "gptq channels": (gptq_parts, GPTQ | {"group_size": -1}, {"group_size": 96}, None),
    "gptq 8 bits": (gptq_parts, GPTQ | {"bits": 8}, {"bits": 8}, Int8(32, False)),
    "gptq 2 bits": (gptq_parts, GPTQ | {"bits": 2}, {"bits": 2}, Int4(32)),
    "gptq 3 bits": (gptq_parts, GPTQ | {"bits": 3}, {"bits": 3}, Int4(32)),
    "compressed int4": (symmetric, compressed(**INT4), {"symmetric": True}, Int4(32, True)),
    "compressed int4 with zeros": (asymmetric, compressed(**INT4), {}, Int4(32)),
    "compressed int8": (
        symmetric,
        compressed(**INT8),
        {"bits": 8, "symmetric": True},
        Int8(32, True),
    ),
    "compressed act-order": (
        ordered,
        compressed(**INT4),
        {"symmetric": True, "act_order": True},
        Int4(32, True),
    ),
    "compressed in bf16": (
        symmetric,
        compressed(**INT4),
        {"symmetric": True, "dtype": torch.bfloat16},
        Int4(32, True),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_integers(folder: Path, case: str) -> None:
    parts, config, grid, precision = CASES[case]
    if grid.get("group_size") == 96:  # one group a row, of 64 or 96 inputs
        precision = Int4(96)
    checkpoint = assert_reads(folder, quantize(folder, parts, config, **grid))
    packed = checkpoint.packed[NAME]
    assert packed.precision == precision
    assert (packed.inputs is not None) == grid.get("act_order", False)
    if packed.inputs is not None:  # in the order of their groups
        read = packed.read()
        assert isinstance(read, IntegerGrid)
        found = read.for_inputs(packed.inputs)
        expected = checkpoint.tensor(NAME)[:, packed.inputs.order]
        assert torch.equal(found.dequantize(), expected)
    assert not checkpoint.packed.keys() & {"model.embed_tokens.weight", "model.norm.weight"}


def test_auto_round_in_the_layout_of_gptq(folder: Path) -> None:
    config = {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": 4}
    grids = quantize(folder, gptq_parts, config | {"group_size": 32, "sym": True}, symmetric=True)
    assert_reads(folder, grids)


@pytest.mark.parametrize(
    ("file", "values", "parts"),
    [
        ("quantize_config.json", {"bits": 4, "group_size": 32, "desc_act": False}, gptq_parts),
        ("quant_config.json", {"w_bit": 4, "q_group_size": 32, "version": "GEMM"}, awq_parts),
        ("quantize_config.json", {"w_bit": 4, "q_group_size": 32, "version": "GEMM"}, awq_parts),
        (
            "hf_quant_config.json",
            {"quantization": {"quant_algo": "W4A16_AWQ", "group_size": 32}},
            modelopt_int4_parts,
        ),
    ],
)
def test_a_configuration_beside_the_model(
    folder: Path, file: str, values: Any, parts: Parts
) -> None:
    grids = quantize(folder, parts, None, symmetric=True)
    write_json(folder / file, values)
    assert_reads(folder, grids)


def test_biases_of_zeros_are_not_read(folder: Path) -> None:
    def biased(grid: Grid) -> Tensors:
        return gptq_parts(grid) | {"bias": torch.zeros(len(grid.levels), dtype=torch.float16)}

    assert_reads(folder, quantize(folder, biased, GPTQ, symmetric=True))


def test_a_head_that_is_quantized_too(tiny: TinyFactory, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("llama3-rope").folder, tmp_path / "model")
    made = {}

    def stored(module: str, weight: torch.Tensor) -> Tensors:
        made[f"{module}.weight"] = grid = random_grid(weight)
        return gptq_parts(grid)

    replace_matrices(folder, stored, GPTQ | {"lm_head": True}, only="lm_head")
    checkpoint = assert_reads(folder, made)
    assert list(checkpoint.packed) == ["lm_head.weight"]
    assert not checkpoint.spec.tie_word_embeddings


def test_bytes_of_compressed_tensors(folder: Path) -> None:
    grids = quantize(
        folder,
        lambda grid: {
            "weight": (grid.levels - 128).to(torch.int8),
            "weight_scale": grid.scales,
        },
        compressed(format="int-quantized", num_bits=8, type="int", strategy="channel"),
        bits=8,
        group_size=96,
        symmetric=True,
    )
    assert assert_reads(folder, grids).packed[NAME].precision == Int8(0, True)


def test_factors_of_the_inputs(folder: Path) -> None:
    factors = torch.linspace(0.5, 2, 96)

    def scaled(grid: Grid) -> Tensors:
        columns = grid.levels.shape[1]
        return modelopt_int4_parts(grid) | {"pre_quant_scale": factors[:columns]}

    config = {"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"}
    grids = quantize(folder, scaled, config, symmetric=True)
    checkpoint = open_checkpoint(folder)
    expected = grids[NAME].matrix * factors
    torch.testing.assert_close(checkpoint.tensor(NAME), expected, rtol=1e-6, atol=0)
    packed = checkpoint.packed[NAME]
    assert packed.precision == Int4(32, True)
    assert packed.inputs is not None
    assert packed.inputs.factors is not None
    assert torch.equal(packed.inputs.factors, factors)


@pytest.mark.parametrize("divides", [False, True], ids=["modelopt", "compressed-tensors"])
def test_nvfp4(folder: Path, divides: bool) -> None:
    made = {}

    def parts(module: str, weight: torch.Tensor) -> Tensors:
        made[f"{module}.weight"] = fp4 = random_fp4(weight)
        if divides:
            return {
                "weight_packed": fp4.packed,
                "weight_scale": fp4.scales,
                "weight_global_scale": 1 / fp4.scale.reshape(1),
                "input_global_scale": torch.ones(1),
            }
        return {
            "weight": fp4.packed,
            "weight_scale": fp4.scales,
            "weight_scale_2": fp4.scale,
            "input_scale": torch.ones(()),
        }

    config = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    if divides:
        config = compressed(
            format="nvfp4-pack-quantized", num_bits=4, strategy="tensor_group", group_size=16
        )
    replace_matrices(folder, parts, config)
    checkpoint = open_checkpoint(folder)
    for name, fp4 in made.items():
        assert torch.equal(checkpoint.tensor(name), fp4.matrix), name
        packed = checkpoint.packed[name]
        assert packed.precision == Nvfp4()
        read = packed.read()
        assert isinstance(read, Nvfp4Blocks)
        assert torch.equal(read.integers().dequantize(), fp4.matrix)


E4M3 = torch.float8_e4m3fn


@pytest.mark.parametrize(
    ("scale", "block", "config", "precision"),
    [
        (
            "weight_scale_inv",
            (32, 32),
            {"quant_method": "fp8", "weight_block_size": [32, 32]},
            None,
        ),
        (
            "weight_scale_inv",
            (10**9, 10**9),
            {"quant_method": "fp8", "weight_block_size": [10**9, 10**9]},
            Fp8(),
        ),
        ("weight_scale", (0, 0), {"quant_method": "modelopt", "quant_algo": "FP8"}, Fp8()),
        ("weight_scale", (1, 0), compressed(format="float-quantized", strategy="channel"), Fp8()),
        ("weight_scale", (1, 0), {"quant_method": "fbgemm_fp8"}, Fp8()),
    ],
    ids=["blocks", "one block", "one scale", "channels", "fbgemm"],
)
def test_fp8(
    folder: Path, scale: str, block: tuple[int, int], config: dict[str, Any], precision: Any
) -> None:
    expected, made = {}, {}

    def parts(module: str, weight: torch.Tensor) -> Tensors:
        rows, columns = weight.shape
        height, width = (min(size or n, n) for size, n in zip(block, weight.shape, strict=True))
        values = (weight * 100).to(E4M3)
        scales = torch.rand(-(-rows // height), -(-columns // width)) + 0.01
        every = scales.repeat_interleave(height, 0)[:rows].repeat_interleave(width, 1)
        expected[f"{module}.weight"] = values.float() * every[:, :columns]
        made[f"{module}.weight"] = values
        return {"weight": values, scale: scales if any(block) else scales.reshape(())}

    replace_matrices(folder, parts, config)
    checkpoint = open_checkpoint(folder)
    for name, matrix in expected.items():
        assert torch.equal(checkpoint.tensor(name), matrix), name
        found = checkpoint.packed[name].read()
        assert isinstance(found, Fp8Matrix)
        assert torch.equal(found.values.view(torch.uint8), made[name].view(torch.uint8))
        assert checkpoint.packed[name].precision == precision
