"""Quantized checkpoints that are damaged, or of a kind that is not read: errors that name it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgelm.checkpoint.source import open_checkpoint, read_spec
from edgelm.errors import BadCheckpoint
from tests.checkpoints.quantized_folders import (
    AWQ,
    GPTQ,
    awq_parts,
    compressed,
    gptq_parts,
    packed_parts,
    random_grid,
    replace_matrices,
    write_json,
)
from tests.checkpoints.weight_folders import Tensors, edit_config, store, tensors_of
from tests.conftest import TinyFactory

MODULE = "model.layers.2.mlp.up_proj"
Damage = Callable[[torch.Tensor], torch.Tensor | None]


@pytest.fixture
def folder(tiny: TinyFactory, tmp_path: Path) -> Path:
    return shutil.copytree(tiny("llama").folder, tmp_path / "model")


def write(folder: Path, parts: Callable[[Any], Tensors], config: dict[str, Any]) -> None:
    replace_matrices(folder, lambda _, weight: parts(random_grid(weight, symmetric=True)), config)


def damage(folder: Path, part: str, change: Damage) -> None:
    tensors = tensors_of(folder)
    changed = change(tensors.pop(f"{MODULE}.{part}"))
    store(folder, tensors if changed is None else tensors | {f"{MODULE}.{part}": changed})


def packed(grid: Any) -> Tensors:
    return packed_parts(grid, symmetric=True)


INT4 = compressed(num_bits=4, type="int", strategy="group", group_size=32)


@pytest.mark.parametrize(
    ("parts", "config", "part", "change", "message"),
    [
        (awq_parts, AWQ, "scales", lambda _: None, "has qweight, qzeros, but no scales"),
        (awq_parts, AWQ, "qzeros", lambda one: one[1:], r"has shape \[1, 12\], expected \[2, 12\]"),
        (awq_parts, AWQ, "scales", lambda one: one.int(), "stored as I32, expected F32 or F16"),
        (awq_parts, AWQ, "scales", lambda one: one * torch.inf, "NaN, infinite"),
        (awq_parts, AWQ, "qweight", lambda one: one[:32], "2 groups of 32 inputs, expected"),
        (awq_parts, AWQ, "qweight", lambda one: one[0], "expected two dimensions"),
        (gptq_parts, GPTQ, "qzeros", lambda one: one[:, :5], "has 5 words per group, expected 4"),
        (gptq_parts, GPTQ, "g_idx", lambda one: one + 1, "g_idx' holds 2, expected indices of"),
        (gptq_parts, GPTQ, "g_idx", lambda one: one[:7], r"shape \[7\], expected \[64\]"),
        (packed, INT4, "weight_shape", lambda _: None, "but no weight_shape"),
        (packed, INT4, "weight_shape", lambda one: one * 3, "not 96 rows"),
        (packed, INT4, "weight_packed", lambda one: one[:, :6], "6 words for 64 inputs"),
        (packed, INT4, "weight_scale", lambda one: one[:, :1].repeat(1, 3), "3 groups of 64"),
    ],
)
def test_parts_that_do_not_fit(
    folder: Path,
    parts: Callable[[Any], Tensors],
    config: dict[str, Any],
    part: str,
    change: Damage,
    message: str,
) -> None:
    write(folder, parts, config)
    damage(folder, part, change)
    with pytest.raises(BadCheckpoint, match=message) as raised:
        open_checkpoint(folder).tensor(f"{MODULE}.weight")
    assert MODULE in str(raised.value)
    assert "model.safetensors" in str(raised.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (AWQ | {"version": "gemv"}, "version is 'gemv', expected gemm"),
        (AWQ | {"bits": 3}, "bits is 3, expected 4"),
        (AWQ | {"zero_point": False}, "zero_point is False, expected true"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin', expected gptq"),
        (GPTQ | {"bits": "4"}, "bits is '4', expected 2, 3, 4 or 8"),
        (compressed(format="marlin-24"), "format is 'marlin-24'"),
        (compressed(strategy="attn_head"), "strategy is 'attn_head', expected tensor"),
        (INT4 | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "expected dense"),
        (INT4 | {"transform_config": {"config_groups": {"R1": {}}}}, "a rotation of inputs"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4_SVD"}, "quant_algo is 'nvfp4_svd'"),
        ({"quant_method": "fp8", "weight_block_size": 128}, "expected two sizes"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, r"\(bitsandbytes\).*code book"),
        ({"quant_method": "torchao"}, r"\(torchao\), which is not supported: its tensors"),
        ({"quant_method": "auto-round"}, "not written in the layout of AWQ or GPTQ"),
        ({"quant_method": "hqq"}, "zero points are fractions"),
        ({"quant_method": "new"}, r"\(new\), which is not supported; edgelm reads awq, gptq"),
        ({"bits": 4}, "quant_method is None, expected a name"),
        ({}, r"quantization_config is \{\}, .* remove it if the weights are not quantized"),
        ([], r"quantization_config is \[\], .* remove it if the weights are not quantized"),
        (False, "quantization_config is False, .* remove it if the weights are not quantized"),
        ("gptq", "quantization_config is 'gptq', expected an object"),
    ],
)
def test_what_is_not_read(folder: Path, config: Any, message: str) -> None:
    edit_config(folder, quantization_config=config)
    for read in (open_checkpoint, read_spec):
        with pytest.raises(BadCheckpoint, match=message):
            read(folder)


def test_a_quantized_cache_is_not_a_quantized_model(folder: Path) -> None:
    quantization = {"quant_algo": None, "kv_cache_quant_algo": "FP8"}
    write_json(folder / "hf_quant_config.json", {"quantization": quantization})
    assert not open_checkpoint(folder).packed


def test_a_configuration_without_levels(folder: Path) -> None:
    edit_config(folder, quantization_config=GPTQ)
    with pytest.raises(BadCheckpoint, match="but none of its tensors is; if they are the unquan"):
        open_checkpoint(folder)


def test_a_cache_that_compressed_tensors_quantizes(folder: Path) -> None:
    edit_config(
        folder, quantization_config={"quant_method": "compressed-tensors", "config_groups": {}}
    )
    assert not open_checkpoint(folder).packed
