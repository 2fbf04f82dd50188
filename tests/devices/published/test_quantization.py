"""Bits of linear and head weights, and the arithmetic, by the name of a quantization."""

from pathlib import Path

import pytest

from edgelm.devices.planner.cost_model.cost import WEIGHT_ONLY
from edgelm.devices.published.models import model_named
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


_HYBRID = {"device": "Jetson AGX Thor (T5000)", "model": "Qwen3.5-9B", "decode_tok_s": "12"}
_MIXTURE = _HYBRID | {"model": "Qwen3.5-35B-A3B"}


@pytest.mark.parametrize(
    ("record", "quantization", "engine", "kept"),
    [
        (_HYBRID, "W4A16", "vLLM", "linear attention"),
        (_HYBRID, "AWQ", "vLLM", "linear attention"),
        (_HYBRID, "INT4 GPTQ", "TensorRT-Edge-LLM", "attention"),
        (_MIXTURE, "INT4 GPTQ / FP16", "TensorRT-Edge-LLM", "attention"),
        (_HYBRID, "INT4 AWQ", "TensorRT-Edge-LLM", ""),
        (_HYBRID, "NVFP4A16", "vLLM", ""),
        (_HYBRID, "NVFP4", "vLLM", ""),
        (_THOR, "INT4 GPTQ", "vLLM", ""),
    ],
)
def test_attention_that_checkpoints_keep_in_16_bits(
    tmp_path: Path, record: dict[str, str], quantization: str, engine: str, kept: str
) -> None:
    over = record | {"quantization": quantization, "engine": engine}
    (row,) = read_rows(write_csv(tmp_path / "rows.csv", [over])).rows
    model = row.model
    wide = {
        "": 0.0,
        "linear attention": model.recurrent_parameters,
        "attention": model.attention_parameters + model.shared_expert_parameters,
    }[kept]
    bits = 4.5 if "NVFP4" in quantization else 4.156
    assert row.work == model.work(bits, 16, wide)
    narrow = model.work(bits, 16)
    more = wide * (16 - bits) / 8
    assert row.work.linear_bytes == pytest.approx(narrow.linear_bytes + more)
    assert row.work.resident_bytes == pytest.approx(narrow.resident_bytes + more)
    assert (wide > 0) == bool(kept)


def test_parameters_of_attention_by_hand() -> None:
    mixture = model_named("Qwen3.5-35B-A3B")
    assert mixture is not None
    full = 10 * 2048 * (3 * 16 * 256 + 2 * 2 * 256)
    linear = 30 * 2048 * (2 * 16 * 128 + 3 * 32 * 128)
    assert mixture.recurrent_parameters == linear
    assert mixture.attention_parameters == full + linear
    assert mixture.shared_expert_parameters == 40 * 3 * 2048 * 512


@pytest.mark.parametrize(
    ("quantization", "engine", "bits"),
    [("NVFP4", "vLLM", 4.5), ("NVFP4 / FP16", "TensorRT-Edge-LLM", 4.5), ("FP8", "vLLM", 8)],
)
def test_nemotron_keeps_attention_and_the_layers_before_it_in_16_bits(
    tmp_path: Path, quantization: str, engine: str, bits: float
) -> None:
    over = _HYBRID | {"model": "Nemotron 3 30B-A3B", "quantization": quantization, "engine": engine}
    (row,) = read_rows(write_csv(tmp_path / "rows.csv", [over])).rows
    attention = 2 * 2688 * (32 * 128 + 2 * 128)
    mamba = 2688 * (2 * 64 * 64 + 2 * 8 * 128 + 64) + 64 * 64 * 2688
    assert row.model.kept_parameters == 6 * (attention + mamba)
    assert row.work == row.model.work(bits, 16, 6 * (attention + mamba))


def test_other_checkpoints_of_nemotron_keep_nothing(tmp_path: Path) -> None:
    over = _HYBRID | {"model": "Nemotron 3 30B-A3B", "quantization": "W4A16", "engine": "vLLM"}
    (row,) = read_rows(write_csv(tmp_path / "rows.csv", [over])).rows
    assert row.work == row.model.work(4.156, 16)
