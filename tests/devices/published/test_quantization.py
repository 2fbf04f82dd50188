"""Bits of linear and head weights, and the arithmetic, by the name of a quantization."""

from pathlib import Path

import pytest

from edgelm.devices.planner.cost_model.cost import WEIGHT_ONLY
from edgelm.devices.published.rows import read_rows
from tests.devices.published.synthetic import write_csv

# Thor has every arithmetic, and memory for 8 billion weights of 16 bits.
_THOR = {"device": "Jetson AGX Thor (T5000)", "decode_tok_s": "12"}

_NAMES = {
    "NVFP4": (4.5, 16, "nvfp4"),
    "NVFP4*": (4.5, 16, "nvfp4"),
    "NVFP4 / FP16": (4.5, 16, "nvfp4"),
    "NVFP4 / ViT FP16": (4.5, 16, "nvfp4"),
    "NVFP4 / NVFP4": (4.5, 4.5, "nvfp4"),
    "NVFP4 / NVFP4 / FP16": (4.5, 4.5, "nvfp4"),
    "NVFP4A16": (4.5, 16, WEIGHT_ONLY),
    "MXFP4": (4.25, 16, WEIGHT_ONLY),
    "INT4 AWQ": (4.156, 16, WEIGHT_ONLY),
    "INT4 AWQ / FP16": (4.156, 16, WEIGHT_ONLY),
    "INT4 AWQ / INT4 AWQ / FP16": (4.156, 4.156, WEIGHT_ONLY),
    "INT4 GPTQ": (4.156, 16, WEIGHT_ONLY),
    "W4A16 (RedHatAI checkpoints, per model pages)": (4.156, 16, WEIGHT_ONLY),
    "INT4 (q4f16)": (4.5, 4.5, WEIGHT_ONLY),
    "q4f16_ft": (4.5, 4.5, WEIGHT_ONLY),
    "Q4_K_M": (4.8, 6.56, WEIGHT_ONLY),
    "Q4_K - Medium": (4.8, 6.56, WEIGHT_ONLY),
    "ollama default": (4.8, 6.56, WEIGHT_ONLY),
    "gemma3 4B Q4_0": (4.5, 6.56, WEIGHT_ONLY),
    "IQ4_XS": (4.5, 6.56, WEIGHT_ONLY),
    "Q5_K_M": (5.7, 6.56, WEIGHT_ONLY),
    "Q6_K": (6.56, 6.56, WEIGHT_ONLY),
    "Q8_0": (8.5, 8.5, WEIGHT_ONLY),
    "Q3_K_M": (3.9, 6.56, WEIGHT_ONLY),
    "IQ2_XXS/Q2_K mix": (3.2, 6.56, WEIGHT_ONLY),
    "FP8": (8.0, 16, "fp8"),
    "W8A16": (8.1, 16, WEIGHT_ONLY),
    "INT8": (8.1, 16, WEIGHT_ONLY),
    "BF16 (assumed from repo)": (16, 16, "fp16"),
    "W16A16": (16, 16, "fp16"),
    " F16 ": (16, 16, "fp16"),
}


@pytest.mark.parametrize(("name", "expected"), _NAMES.items(), ids=lambda value: str(value))
def test_quantization(tmp_path: Path, name: str, expected: tuple[float, float, str]) -> None:
    (row,) = read_rows(write_csv(tmp_path / "rows.csv", [_THOR | {"quantization": name}])).rows
    linear_bits, head_bits, arithmetic = expected
    assert row.work == row.model.work(linear_bits, head_bits)
    assert row.arithmetic == arithmetic


@pytest.mark.parametrize(
    ("model", "linear_bits", "head_bits"),
    [
        ("Qwen_Qwen3-8B-Q4_K_M", 4.8, 6.56),
        ("Qwen3-8B-Q4_0", 4.5, 6.56),
        ("Qwen3-8B-Q8_0", 8.5, 8.5),
        ("Qwen3-8B-Q6_K_L", 6.56, 6.56),
        ("Qwen3-8B-IQ4_NL", 4.5, 6.56),
    ],
)
def test_quantization_in_the_files_name(
    tmp_path: Path, model: str, linear_bits: float, head_bits: float
) -> None:
    record = _THOR | {"quantization": "", "model": model}
    (row,) = read_rows(write_csv(tmp_path / "rows.csv", [record])).rows
    assert row.work == row.model.work(linear_bits, head_bits)


@pytest.mark.parametrize("name", ["GGUF", "not stated in excerpt", "W8A8", "FP32", "Q4_1"])
def test_unknown_quantization(tmp_path: Path, name: str) -> None:
    table = read_rows(write_csv(tmp_path / "rows.csv", [_THOR | {"quantization": name}]))
    assert table.left_out == {"the quantization is not known": 1}
