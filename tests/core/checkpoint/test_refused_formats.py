"""Quantized models and adapters, each by every mark that their makers leave."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from edgelm.checkpoint.source import open_checkpoint, read_spec
from edgelm.errors import BadCheckpoint
from tests.checkpoints.weight_folders import (
    edit_config,
    split_header,
    store,
    tensors_of,
    write_header,
)
from tests.conftest import TinyFactory

PROJECTION = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def folder(tiny: TinyFactory, tmp_path: Path) -> Path:
    return shutil.copytree(tiny("llama").folder, tmp_path / "model")


def assert_quantized(folder: Path, mark: str) -> None:
    with pytest.raises(BadCheckpoint, match=rf"already quantized \({mark}.*unquantized model"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("field", "value", "mark"),
    [
        ("quantization", {"group_size": 64, "bits": 4}, "MLX"),
    ],
)
def test_marks_in_the_configuration(folder: Path, field: str, value: Any, mark: str) -> None:
    edit_config(folder, **{field: value})
    assert_quantized(folder, mark)
    with pytest.raises(BadCheckpoint, match="already quantized"):
        read_spec(folder)


def test_a_configuration_that_says_nothing(folder: Path) -> None:
    edit_config(folder, quantization_config=None)
    assert open_checkpoint(folder).spec.family == "llama"


@pytest.mark.parametrize(
    ("name", "mark"),
    [
        ("quanto_qmap.json", "quanto"),
    ],
)
@pytest.mark.parametrize("content", ["{}", "[", '{"quantization": {"quant_algo": "FP8"}}'])
def test_marks_beside_the_configuration(folder: Path, name: str, mark: str, content: str) -> None:
    (folder / name).write_text(content)
    assert_quantized(folder, f"{mark}: it holds {name}")


@pytest.mark.parametrize(
    ("names", "mark"),
    [
        (["qweight", "qzeros", "scales"], "GPTQ or AWQ"),
        (["qweight", "scales", "g_idx"], "GPTQ or AWQ"),
        (["weight", "scales", "biases"], "MLX"),
        (["weight_packed", "weight_scale", "weight_shape"], "compressed-tensors"),
        (["weight", "weight_scale_inv"], "FP8 in blocks"),
        (["weight", "weight_scale", "input_scale"], "FP8, INT8 or NVFP4"),
        (["weight", "weight_scale_2"], "FP8, INT8 or NVFP4"),
        (["weight", "SCB"], "bitsandbytes, 8 bits"),
        (["weight", "weight.absmax", "weight.quant_map"], "bitsandbytes, 4 bits"),
        (["weight", "weight.quant_state.bitsandbytes__nf4"], "bitsandbytes, 4 bits"),
        (["weight_blocks", "weight_scales"], "MXFP4"),
        (["weight:qdata", "weight:scale"], "torchao"),
        (["q_weight", "q_scale"], "EXL2"),
        (["W_q"], "HQQ"),
        (["weight._data", "weight._scale"], "quanto"),
    ],
)
def test_marks_in_the_names_of_tensors(folder: Path, names: list[str], mark: str) -> None:
    tensors = tensors_of(folder)
    weight = tensors.pop(f"{PROJECTION}.weight")
    tensors |= {f"{PROJECTION}.{name}": torch.ones_like(weight) for name in names}
    store(folder, tensors)
    assert_quantized(folder, mark)


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.int8, torch.uint8, torch.bool, torch.int32, torch.int64, torch.int16),
        *(torch.float8_e4m3fn, torch.float8_e5m2),
    ],
    ids=str,
)
def test_weights_stored_as_another_type(folder: Path, dtype: torch.dtype) -> None:
    tensors = tensors_of(folder)
    tensors[f"{PROJECTION}.weight"] = tensors[f"{PROJECTION}.weight"].to(dtype)
    store(folder, tensors)
    assert_quantized(folder, rf"'{PROJECTION}\.weight' is stored as \w+, expected F32")


def test_weights_of_less_than_a_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    header, data = split_header(path)
    entry = header[f"{PROJECTION}.weight"]
    header[f"{PROJECTION}.weight"] = entry | {"dtype": "F4", "shape": [64, 64 * 8]}
    write_header(path, header, data)
    assert_quantized(folder, r".* is stored as F4, expected F32")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_floating_point_types_are_read(folder: Path, dtype: torch.dtype) -> None:
    store(folder, {name: values.to(dtype) for name, values in tensors_of(folder).items()})
    assert open_checkpoint(folder).tensor(f"{PROJECTION}.weight").dtype == dtype


def assert_adapter(folder: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"contains a LoRA or another adapter .*merge it"):
        open_checkpoint(folder)


@pytest.mark.parametrize("whole", [True, False], ids=["beside-a-model", "alone"])
def test_an_adapter(folder: Path, whole: bool) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    store(folder, {name: torch.zeros(8, 64)}, "adapter_model")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    if not whole:
        (folder / "model.safetensors").unlink()
        (folder / "config.json").unlink()
    assert_adapter(folder)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_without_its_configuration(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    assert_adapter(folder)


@pytest.mark.parametrize(
    "name",
    [
        f"{PROJECTION}.lora_A.default.weight",
        f"{PROJECTION}.lora_magnitude_vector.default.weight",
        f"{PROJECTION}.base_layer.weight",
        "base_model.model.lm_head.modules_to_save.weight",
    ],
)
def test_an_adapters_tensors_in_a_models_file(folder: Path, name: str) -> None:
    store(folder, tensors_of(folder) | {name: torch.ones(4)})
    assert_adapter(folder)
